"""The written pages: copied as they lie in the checkout, with the files that they link to."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATTERNS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")
PATTERNS += ("plugins/*/README.md", "examples/*/README.md")

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")


class BrokenLinkError(Exception):
    """A page links to what is not there; the message has a line for each such link."""


def written_pages() -> list[Path]:
    """Return the Markdown pages of the checkout, relative to it."""
    found = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
    return [path.relative_to(ROOT) for path in found]


def copy_pages(target: Path) -> None:
    """Copy every page, and every file that one links to, each to its place in the checkout.

    Args:
        target: The folder of the site's pages.

    Raises:
        BrokenLinkError: If a link leads nowhere.
    """
    broken: list[str] = []
    for page in written_pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        place = target / page
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_with_links(text, page, target, broken), encoding="utf-8")
    if broken:
        raise BrokenLinkError("\n".join(broken))


def title(page: Path) -> str:
    """Return the heading of a page."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _with_links(text: str, page: Path, target: Path, broken: list[str]) -> str:
    """Return a page's text with links that a site can follow, and copy the files they lead to."""

    def follow(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        if link.startswith(("http://", "https://")):
            return link + anchor
        file = (ROOT / page.parent / link).resolve()
        if file.is_dir():
            if not (file / "README.md").exists():
                _list_folder(file, target)
            return f"{link.rstrip('/')}/README.md{anchor}"
        if not file.is_file():
            broken.append(f"{page} links to {link}, which does not exist")
        elif file.suffix != ".md":
            _copy(file, target)
        return link + anchor

    # Code is left alone: what looks like a link there is none.
    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(follow, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(follow, text[end:])])


def _copy(file: Path, target: Path) -> None:
    copy = target / file.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)


def _list_folder(folder: Path, target: Path) -> None:
    """Make a page of a folder that has none: its files, which a forge would list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        _copy(file, target)
    names = [file.relative_to(folder).as_posix() for file in files]
    place = folder.relative_to(ROOT)
    lines = [f"# {place}", "", *(f"- [{name}]({name})" for name in names)]
    (target / place / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
