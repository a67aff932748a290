"""What a plugin author reads: two packages to import from, and pages whose code works."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import spectok
from spectok import quantizers
from spectok.quantizers import RunningQuantizer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_quantizer"
PAGE = ROOT / "docs" / "plugins.md"
PUBLIC = {"spectok", "spectok.quantizers"}
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

BLOCKS = FENCE.findall(PAGE.read_text(encoding="utf-8"))


def core_modules(code: str) -> set[str]:
    """Return the modules of core that code imports from, also as ``from spectok import losses``."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "spectok":
                hidden = {alias.name for alias in node.names} - set(spectok.__all__)
                found |= {f"spectok.{name}" for name in hidden}
    return {name for name in found if name.split(".")[0] == "spectok"}


def is_test(code: str) -> bool:
    return "spectok.testing" in core_modules(code)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_imports_from_the_public_packages(number: int):
    code = BLOCKS[number]
    assert core_modules(code) <= PUBLIC | {"spectok.testing"}
    if is_test(code):
        assert code.startswith("# tests/"), "only tests import spectok.testing"


@pytest.mark.parametrize(
    "path", sorted(EXAMPLE.rglob("*.py")), ids=lambda path: path.relative_to(EXAMPLE).as_posix()
)
def test_the_example_imports_from_the_public_packages(path: Path):
    allowed = PUBLIC | ({"spectok.testing"} if path.parent.name == "tests" else set())
    assert core_modules(path.read_text(encoding="utf-8")) <= allowed


def test_the_pages_prose_sends_nobody_to_a_submodule():
    prose = re.sub(r"^```.*?^```$", "", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    named = set(re.findall(r"\bspectok\.[a-z_]+\b", prose))
    assert named <= PUBLIC | {"spectok.testing", *(f"spectok.{name}" for name in spectok.__all__)}


def test_the_scan_sees_every_way_to_import():
    code = """
import spectok.nn
from spectok import InputError, losses
from spectok.loading import build_quantizer
def f():
    from spectok.quantizers.search import nearest_codes
"""
    hidden = {"spectok.nn", "spectok.losses", "spectok.loading", "spectok.quantizers.search"}
    assert core_modules(code) == {"spectok"} | hidden


# -- the code that authors copy ---


def test_the_packages_page_is_a_complete_quantizer():
    page = quantizers.__doc__ or ""
    code = "\n".join(line[4:] for line in re.findall(r"(?m)^(    .*|)$", page.split("::\n")[1]))
    code = code.split("\nThe contract")[0]
    end = code.rindex("assert torch.equal")
    namespace: dict[str, Any] = {}
    exec(compile(code[: code.index("\n", end)], quantizers.__name__, "exec"), namespace)
    output = namespace["output"]
    assert output.indices.shape == (4, 16, 2)
    assert output.indices.unique().tolist() != [0]


def test_the_packages_page_names_what_it_exports():
    named = set(re.findall(r":(?:class|func|data):`(\w+)`", quantizers.__doc__ or ""))
    assert named == set(quantizers.__all__)


def test_the_front_page_names_what_it_exports():
    page = spectok.__doc__ or ""
    named = set(re.findall(r":(?:class|func|data):`(\w+)`", page))
    listed = {name for name in spectok.__all__ if name.startswith("list_")}
    assert named == set(spectok.__all__) - listed - {"__version__"}


def test_the_documented_running_means_train():
    (code,) = (block for block in BLOCKS if "class MeanQuantizer" in block)
    namespace: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    quantizer: RunningQuantizer = namespace["MeanQuantizer"](dim=4, num_tokens=8, codebook_size=16)
    vectors = torch.randn(16, 8, 4)
    errors = []
    for _ in range(20):
        errors.append((quantizer(vectors).z_q - vectors).square().mean().item())
        quantizer.after_step()
    assert errors[-1] < 0.75 * errors[0]
