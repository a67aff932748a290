"""The house: no circle of imports, each room only on those below it, the page about them true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import spectok

ROOT = Path(spectok.__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
LAYERS = (
    {
        "device",
        "errors",
        "interruption",
        "lazy",
        "machine",
        "messages",
        "outputs",
        "places",
        "reading",
        "remembered",
        "writing",
        "sizes",
        "tiling",
        "token_spec",
    }
    | {"distributed"},
    {"bounds", "buffers", "hub", "saving", "weights"},
    {"saved_config"},
    {"images", "processes"},
    {"token_files"},
    {"plugins"},
    {"recipes"},
    {"data"},
    {"quantizers", "losses"},
    {"modeling", "processing", "any_size", "token_space", "tokenizer", "loading", "foreign"}
    | {"trained"},
    {"nn"},
    {"metrics", "cards"},
    {"training"},
    {"planning"},
    {"evaluation"},
    {"codec"},
    {"testing"},
    {"cli"},
)
"""Rooms and loose modules of core, each importing only from its own layer and those before it."""
REACH_FURTHER = {f"spectok.plugins.{name}" for name in ("hookspecs", "registry", "builtin")}

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs a checkout, not an installed wheel"
)


def modules(root=ROOT):
    """Return every module of the three source roots: name -> file."""
    found = {}
    for source in ("core", "plugins", "generation"):
        for path in (root / source).rglob("*.py"):
            parts = path.relative_to(root / source).with_suffix("").parts
            if parts[0].startswith("spectok"):
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(known):
    """Return which modules each imports, for type checkers or inside a function too."""
    graph = {}
    for name, path in known.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inside & known.keys()) or {node.module}
        graph[name] = (wanted & known.keys()) - {name}
    return graph


def circles(graph):
    """Return the groups of modules that reach one another."""
    reached = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            for module in graph[waiting.pop()] - seen:
                seen.add(module)
                waiting.append(module)
        reached[start] = seen
    together = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph}
    return sorted(sorted(group) for group in together if group)


def layer_of(module):
    room = module.split(".")[1]
    return next((i for i, rooms in enumerate(LAYERS) if room in rooms), None)


def test_no_module_imports_itself_through_others():
    assert circles(imports(modules())) == []


def test_the_search_for_circles_finds_one(tmp_path):
    for name, text in {
        "a": "from spectok.b import x\n",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from spectok import c\n",
        "c": "def f():\n    import spectok.a\n",
        "d": "from spectok.a import y\n",
    }.items():
        path = tmp_path / "core" / "spectok" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert circles(imports(modules(tmp_path))) == [["spectok.a", "spectok.b", "spectok.c"]]


def test_every_room_imports_only_what_lies_below_it():
    graph = imports(modules())
    for module, wanted in graph.items():
        if not module.startswith("spectok.") or module in REACH_FURTHER | {"spectok.__main__"}:
            continue
        assert layer_of(module) is not None, (
            f"{module} belongs to no room; see docs/architecture.md"
        )
        for other in wanted - {"spectok"}:
            if other.startswith("spectok."):
                assert layer_of(other) <= layer_of(module), f"{module} imports {other}"
            else:
                pytest.fail(f"{module}, in core, imports {other}")


def test_the_page_names_every_room_and_only_files_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    for room in set().union(*LAYERS):
        assert re.search(rf"`{room}[/`]", text), f"docs/architecture.md does not name {room}"
    for path in re.findall(r"`((?:core|generation)/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path
    files = {path.name for path in modules().values()}
    for name in re.findall(r"`(\w+\.py)`", text):  # beside a file of the same folder
        assert name in files, name
