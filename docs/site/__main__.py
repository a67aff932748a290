"""Build the documentation site: ``python docs/site``, with the extra ``docs`` installed.

The written pages are the Markdown files of the checkout, unchanged. The reference is made from the
code. A broken link, or a page that would fetch something from elsewhere, ends the build. Nothing is
read from a network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import checking
import pages
import reference
import registered

HERE = Path(__file__).parent
START = (
    "README.md",
    "docs/first-hour.md",
    "docs/concepts.md",
    "docs/data.md",
    "docs/training.md",
    "docs/evaluation.md",
    "docs/playground.md",
    "docs/codec.md",
    "docs/scale.md",
    "docs/trust.md",
)
EXTEND = ("docs/plugins.md", "docs/write-a-tokenizer.md")
MEASURED = ("docs/results.md", "docs/claims.md")
PROJECT = ("docs/architecture.md", "CONTRIBUTING.md", "CHANGELOG.md")


def main(words: list[str]) -> int:
    """Build the site into the folder that is given, or into ``build/docs``."""
    if words and words[0].startswith("-"):
        print(__doc__ if words == ["--help"] else f"error: no option {words[0]}; give a folder")
        return 0 if words == ["--help"] else 2
    folder = Path(words[0] if words else pages.ROOT / "build" / "docs").absolute()
    if folder.exists() and not (folder / "zensical.toml").exists() and any(folder.iterdir()):
        print(f"error: {folder} holds something else; give an empty or new folder", file=sys.stderr)
        return 2
    try:
        site = build(folder)
    except pages.BrokenLinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = checking.problems(site)
    print("\n".join(found) or f"built {site}/index.html", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


def build(folder: Path) -> Path:
    """Gather and make all pages in a folder, and build the site there; return where it lies.

    Raises:
        BrokenLinkError: If a written page links to what is not there.
        CalledProcessError: If a tool fails, which has then said why.
    """
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "pages"
    target.mkdir(parents=True)
    settings = (HERE / "zensical.toml").read_text(encoding="utf-8")
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")  # marks the folder as ours
    pages.copy_pages(target)
    made = _made_pages()
    for name, text in made.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    settings = settings.replace("nav = []", f"nav = {_toml(_navigation(made))}")
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, check=True)
    return folder / "site"


def _made_pages() -> dict[str, str]:
    """Return the pages that are made from the code, by their place."""
    recipes = registered.listed("recipes")
    made = {
        f"{kind}s/{name}.md": text
        for kind in ("tokenizer", "prior")
        for name, text in registered.registered_pages(kind, recipes).items()
    }
    made["reference/quantizers.md"] = registered.quantizers_page()
    made["reference/recipes.md"] = registered.recipes_page(recipes)
    made["reference/options.md"] = _command_line()
    made |= {f"reference/{name}.md": reference.package_page(name) for name in reference.PACKAGES}
    return made


def _command_line() -> str:
    """Return typer's own page of all commands and options."""
    command = [sys.executable, "-m", "typer", str(HERE / "command_line.py"), "utils", "docs"]
    command += ["--name", "spectok", "--title", "Every command and option"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _navigation(made: dict[str, str]) -> list[Any]:
    def written(*names: str) -> list[Any]:
        return [{pages.title(Path(name)): name} for name in names]

    def below(folder: str) -> list[Any]:
        return [{Path(name).stem: name} for name in made if name.startswith(folder)]

    everything = [page.as_posix() for page in pages.written_pages()]
    packages = [{name: f"reference/{name}.md"} for name in reference.PACKAGES]
    return [
        {"Use": written(*START)},
        {"Tokenizers": [*below("tokenizers/"), {"Quantizers": "reference/quantizers.md"}]},
        {"Priors": below("priors/")},
        {"Papers": written(*(name for name in everything if name.startswith("plugins/")))},
        {"Extend": written(*EXTEND, *(n for n in everything if n.startswith("examples/")))},
        {
            "Reference": [
                {"Command line": "docs/cli.md"},
                {"Every command and option": "reference/options.md"},
                {"Recipes": "reference/recipes.md"},
                {"Python": packages},
            ]
        },
        {"Measured": written(*MEASURED)},
        {"Project": written(*PROJECT)},
    ]


def _toml(value: Any) -> str:
    """Return lists, strings and mappings of one key as TOML."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{{ {', '.join(f'{_toml(key)} = {_toml(each)}' for key, each in value.items())} }}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
