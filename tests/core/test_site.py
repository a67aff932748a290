"""The site of the documentation: made from every page, and nothing broken gets through."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"

pytest.importorskip("griffe", reason="the extra docs is not installed")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the program: ``module("pages")``."""
    monkeypatch.syspath_prepend(SITE)
    names = [path.stem for path in SITE.glob("*.py")]
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def written(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that copies a checkout of one page, with that text."""
    pages = module("pages")
    monkeypatch.setattr(pages, "ROOT", tmp_path / "checkout")

    def copy(text: str) -> Path:
        (tmp_path / "checkout").mkdir()
        (tmp_path / "checkout" / "README.md").write_text(text, encoding="utf-8")
        (tmp_path / "checkout" / "numbers").mkdir()
        (tmp_path / "checkout" / "numbers" / "one.json").write_text("1")
        pages.copy_pages(tmp_path / "pages")
        return tmp_path / "pages"

    return copy


def test_every_page_and_what_it_links_to_is_copied(module: Any, tmp_path: Path):
    pages = module("pages")
    pages.copy_pages(tmp_path)
    for page in pages.written_pages():
        assert (tmp_path / page).is_file()
    assert (tmp_path / "docs/images/demo.png").is_file()
    assert (tmp_path / "benchmarks/results/demo.json").is_file()


def test_a_folder_without_a_page_gets_one(written: Any):
    target = written("# Page\n[numbers](numbers)\n")
    assert "[numbers](numbers/README.md)" in (target / "README.md").read_text()
    assert "[one.json](one.json)" in (target / "numbers/README.md").read_text()
    assert (target / "numbers/one.json").read_text() == "1"


def test_a_link_to_nothing_ends_the_build(module: Any, written: Any):
    with pytest.raises(module("pages").BrokenLinkError, match=r"README.md links to gone\.md"):
        written("# Page\n[gone](gone.md)\n")


def test_links_in_code_are_none(written: Any):
    text = "# Page\n```\n[gone](gone.md)\n```\n"
    assert (written(text) / "README.md").read_text() == text


def test_every_page_is_in_the_navigation(module: Any):
    program = runpy.run_path(str(SITE / "__main__.py"))
    shown = json.dumps(program["_navigation"]({}))
    missing = [page for page in module("pages").written_pages() if f'"{page}"' not in shown]
    assert not missing


def example(size: int, *, name: str = "a") -> str:
    """Do what :func:`other.thing` does.

        input -> output

    Args:
        size: In pixels; see ``name``.
        name: A | B.

    Raises:
        ValueError: If it fails.
    """
    raise ValueError(f"{size} {name}")


class Example:
    """Has options.

    Args:
        size: In pixels.
        name: A | B.
    """

    def __init__(self, size: Annotated[int, Field(ge=1, lt=9)] = 3, name: str = "a"):  # type: ignore
        self.size, self.name = size, name


def test_docstrings_become_markdown(module: Any):
    text = module("reference").docstring(example)
    assert "Do what `other.thing` does." in text
    assert "\n    input -> output" in text  # still code
    assert "**Parameters**\n\n- `size`: In pixels; see ``name``." in text
    assert "**Raises**\n\n- `ValueError`: If it fails." in text


def test_options_become_a_table(module: Any):
    rows = module("reference").options_table(Example).splitlines()
    assert rows[2] == "| `size` | `int, ≥ 1, < 9` | `3` | In pixels. |"
    assert rows[3] == r"| `name` | `str` | `'a'` | A \| B. |"


def test_a_package_page_has_every_exported_name(module: Any):
    import spectok.losses

    page = module("reference").package_page("spectok.losses")
    assert page.startswith("# spectok.losses\n\nLosses for any tokenizer")
    for name in spectok.losses.__all__:
        assert f"\n## {name}\n" in page
    assert "### LPIPS.forward" in page


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="gone/">x</a>', "the front page: no gone/"),
        ('<a href="other/#here">x</a>', "the front page: no other/#here"),
        ('<img src="https://example.org/a.png">', "fetches https://example.org/a.png"),
        ('<script src="//example.org/a.js"></script>', "fetches //example.org/a.js"),
        ('<a href="other/#there">x</a><a href="https://example.org">y</a>', None),
    ],
)
def test_built_pages_are_checked(module: Any, tmp_path: Path, html: str, problem: str | None):
    (tmp_path / "index.html").write_text(html)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text('<h1 id="there">There</h1>')
    found = module("checking").problems(tmp_path)
    assert not found if problem is None else [problem in line for line in found] == [True]


@pytest.mark.usefixtures("module")
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: Any):
    (tmp_path / "mine.txt").touch()
    program = runpy.run_path(str(SITE / "__main__.py"))
    assert program["main"]([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds something else; ")
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path):
    pytest.importorskip("zensical")
    done = subprocess.run([sys.executable, SITE, tmp_path / "s"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "s" / "site"
    assert "downsample_factor" in (site / "tokenizers/vqvae/index.html").read_text()
    assert "spectok text-to-image" in (site / "reference/options/index.html").read_text()
