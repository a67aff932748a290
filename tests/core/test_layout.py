"""How the repository is laid out: what imports what, what the wheel holds, what a name loads."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import spectok
from spectok import list_tokenizers
from spectok.plugins import hookspecs, registry

ROOT = Path(spectok.__file__).parents[2]
CORE = ROOT / "core" / "spectok"
PLUGINS = sorted((ROOT / "plugins").glob("spectok_*"))
GENERATION = ROOT / "generation"

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs a checkout, not an installed wheel"
)


def sources(folder):
    return sorted(folder.rglob("*.py"))


def imported(path):
    """Return the top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {
                a.value.split(".")[0]
                for a in node.args
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            }
    return names


def ours(path):
    return {name for name in imported(path) if name == "spectok" or name.startswith("spectok_")}


# -- dependencies point one way ---


def test_core_imports_neither_plugins_nor_generation():
    for path in sources(CORE):
        assert ours(path) <= {"spectok"}, path


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda p: p.name)
def test_a_plugin_imports_core_and_itself(folder):
    for path in sources(folder):
        assert ours(path) <= {"spectok", folder.name}, path


def test_generation_imports_core_and_itself():
    for path in sources(GENERATION):
        assert ours(path) <= {"spectok", "spectok_generation"}, path


def test_the_scan_sees_imports_in_functions(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from spectok_vq.model import VQVAE\n    import spectok_x.y\n")
    assert ours(path) == {"spectok_vq", "spectok_x"}


# -- the command line on top ---


def is_command_line(path):
    """Return whether a module is one of the command line, which alone may import it."""
    return "cli" in path.with_suffix("").parts or path.name in ("plugin.py", "__main__.py")


def modules_imported(path):
    """Return the modules and the names in them that a file imports, wherever in it, dotted."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def command_line_imports(path):
    """Return what a file imports of typer or of any module called ``cli``."""
    found = {name for name in modules_imported(path) if "cli" in name.split(".")}
    return found | ({"typer"} & imported(path))


LIBRARY = [
    path
    for folder in (CORE, *PLUGINS, GENERATION / "spectok_generation")
    for path in sources(folder)
    if not is_command_line(path.relative_to(ROOT))
]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_library_module_imports_the_command_line(path):
    allowed = {"typer"} if path.name == "hookspecs.py" else set()  # the type of a hook's argument
    assert command_line_imports(path) <= allowed


def test_the_scan_sees_the_command_line_however_it_is_imported(tmp_path):
    path = tmp_path / "module.py"
    for line in (
        "import typer",
        "from typer.core import TyperGroup",
        "import spectok.cli.console",
        "from spectok.cli.console import say_next",
        "from spectok_generation import cli",
        "def f():\n    from spectok_generation.text.cli import add_commands",
    ):
        path.write_text(line + "\n")
        assert command_line_imports(path), line
    path.write_text("from spectok.client import call\n")
    assert not command_line_imports(path)


# -- what is imported is declared ---


@functools.cache
def declared():
    """Return the distributions that pyproject.toml names, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def brought():
    """Return the importable names that the declared distributions bring."""
    return {
        name
        for name, distributions in packages_distributions().items()
        if {canonical(distribution) for distribution in distributions} & declared()
    }


def undeclared(path):
    """Return the imported libraries that no declared distribution brings."""
    return imported(path) - set(sys.stdlib_module_names) - ours(path) - brought()


def test_every_import_is_a_declared_dependency():
    for root in (CORE, *PLUGINS, GENERATION):
        for path in sources(root):
            assert not undeclared(path), path


def test_the_scan_sees_what_is_not_declared(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import torch, PIL\n\n\ndef f():\n    import packaging.version, nowhere\n")
    assert undeclared(path) == {"packaging", "nowhere"}


# -- no tokenizer has a place in the code of others ---


def strings(path):
    """Return the strings that code can act on, with their lines: all but docstrings."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = [node for node in nodes if isinstance(node, ast.Constant)]
    kept = [node for node in found if isinstance(node.value, str) and id(node) not in docstrings]
    return [(node.lineno, node.value) for node in kept]


def named_tokenizers(path):
    """Return each key of a tokenizer that stands as a word in a string, with its line."""
    keys = set(list_tokenizers())
    words = [(line, word) for line, text in strings(path) for word in re.findall(r"\w+", text)]
    return [(line, word) for line, word in words if word in keys]


@pytest.mark.parametrize("folder", [CORE, GENERATION], ids=["core", "generation"])
def test_no_code_outside_plugins_names_a_tokenizer(folder):
    for path in sources(folder):
        for line, key in named_tokenizers(path):
            pytest.fail(f"{path}:{line} names {key!r}; ask its TokenSpec or its attributes instead")


def test_the_scan_sees_names_in_code_and_none_in_docstrings(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Such as ``qgvae``."""\n\n\ndef f(name):\n    """As of ``vqvae``."""\n'
        '    return name == "qgvae" or f"{name}, a vqvae/digits" or {"qgvae_like": 1}\n'
    )
    assert named_tokenizers(path) == [(6, "qgvae"), (6, "vqvae")]


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda p: p.name)
def test_a_plugin_has_its_hooks_and_says_what_it_reproduces(folder):
    assert {"__init__.py", "plugin.py", "README.md"} <= {path.name for path in folder.iterdir()}


# -- the three roots ---


def test_roots_are_no_packages_and_shadow_no_library():
    for root in ("core", "plugins", "generation"):
        assert not (ROOT / root / "__init__.py").exists()
    scripts = {path.stem for path in GENERATION.glob("*.py")}
    assert not scripts & {*sys.stdlib_module_names, *packages_distributions()}


def test_gitignore_keeps_the_sources():
    for line in (ROOT / ".gitignore").read_text().splitlines():
        assert line.strip("/") not in {"core", "plugins", "generation", "configs", "data", "models"}


def test_modules_stay_within_a_screenful_of_screens():
    for root in (CORE, *PLUGINS, GENERATION):
        for path in sources(root):
            length = len(path.read_text(encoding="utf-8").splitlines())
            assert length <= 400, f"{path} has {length} lines; split it at 400"


def test_hookspecs_fit_on_one_screen():
    text = Path(hookspecs.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90


def test_every_hook_is_documented_and_used():
    hooks = {name for name in vars(hookspecs) if name.startswith("spectok_")}
    for name in hooks:
        assert getattr(hookspecs, name).__doc__, name
    code = "".join(p.read_text(encoding="utf-8") for r in (CORE, GENERATION) for p in sources(r))
    for name in hooks:
        assert re.search(rf"[\"']{name}[\"']", code), f"nothing calls the hook {name}"
    assert set(registry.HOOKS.values()) <= hooks


# -- what `import spectok` gives ---


def test_every_exported_name_exists_and_is_documented():
    for name in spectok.__all__:
        value = getattr(spectok, name)
        assert isinstance(value, str) or value.__doc__, name
    assert dir(spectok) == sorted(spectok.__all__)


def test_exports_are_those_that_type_checkers_see():
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        alias.name: node.module
        for block in guarded
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == spectok._HOME
    assert set(spectok.__all__) == set(homes) | {"__version__", "hookimpl"}


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'spectok' has no attribute 'load_tokeniser'"):
        _ = spectok.load_tokeniser


def test_every_all_is_true():
    for root, package in [(ROOT / "core", CORE), (GENERATION, GENERATION / "spectok_generation")]:
        for path in package.rglob("__init__.py"):
            module = importlib.import_module(".".join(path.parent.relative_to(root).parts))
            for name in getattr(module, "__all__", []):
                assert hasattr(module, name), f"{module.__name__}.__all__ names {name}"


HEAVY = {"torch", "numpy", "diffusers", "transformers", "datasets", "accelerate", "pydantic", "PIL"}


def test_import_is_light():
    """Neither ``import spectok`` nor reading every plugin loads a heavy library."""
    code = (
        "import sys, spectok; from spectok import plugins; plugins.installed(); dir(spectok);"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# -- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_our_packages_and_nothing_else(wheel):
    top = {name.split("/")[0] for name in wheel}
    packages = {"spectok", "spectok_generation", *(folder.name for folder in PLUGINS)}
    assert top == packages | {f"spectok-{spectok.__version__}.dist-info"}


def test_wheel_holds_every_source_and_recipe(wheel):
    for root, folder in [
        (ROOT / "core", CORE),
        (ROOT / "plugins", ROOT / "plugins"),
        (GENERATION, GENERATION / "spectok_generation"),
    ]:
        for path in sources(folder):
            assert str(path.relative_to(root)) in wheel
    for path in (ROOT / "configs").rglob("*.yaml"):
        name = f"spectok/configs/{path.relative_to(ROOT / 'configs')}"
        assert yaml.safe_load(wheel[name]) == yaml.safe_load(path.read_text())
    assert not [name for name in wheel if "__pycache__" in name or "/tests/" in name]


def test_wheel_says_how_to_find_plugins_and_the_command(wheel):
    points = wheel[f"spectok-{spectok.__version__}.dist-info/entry_points.txt"].decode()
    assert f"[{hookspecs.GROUP}]" in points
    assert "spectok = spectok.cli:main" in points
