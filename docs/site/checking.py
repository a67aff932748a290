"""A check of the built pages: every link leads somewhere, and nothing is fetched from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

_ORIGIN = "http://site/"
_FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class _Page(HTMLParser):
    """What a page offers and asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in _FETCHED and _FETCHED[tag] in given and given.get("rel") != "canonical":
            self.fetched.append(given[_FETCHED[tag]])


def problems(site: Path) -> list[str]:
    """Return a line for each link or file of the built pages that leads nowhere or elsewhere.

    Args:
        site: The folder with the built site.
    """
    pages: dict[str, _Page] = {}
    for file in sorted(site.rglob("*.html")):
        pages[_address(site, file)] = page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
    own = {address: page for address, page in pages.items() if not address.endswith("404.html")}
    found = []
    for address, page in own.items():
        where = address.removeprefix(_ORIGIN) or "the front page"
        asked = [urljoin(address, link) for link in (*page.links, *page.fetched)]
        found += [
            f"{where}: no {link.removeprefix(_ORIGIN)}" for link in asked if _lost(link, site, own)
        ]
        outside = [link for link in page.fetched if _is_outside(urljoin(address, link))]
        found += [f"{where}: fetches {link} from elsewhere" for link in outside]
    return found


def _address(site: Path, file: Path) -> str:
    return _ORIGIN + file.relative_to(site).as_posix().removesuffix("index.html")


def _is_outside(link: str) -> bool:
    return not link.startswith(_ORIGIN) and urlsplit(link).scheme in ("http", "https", "")


def _lost(link: str, site: Path, pages: dict[str, _Page]) -> bool:
    """Whether a link inside the site leads to no file, or to no such heading of a page."""
    if not link.startswith(_ORIGIN):
        return False
    target, anchor = urldefrag(link)
    if target in pages:
        return bool(anchor) and unquote(anchor) not in pages[target].anchors
    return not (site / unquote(urlsplit(target).path).lstrip("/")).is_file()
