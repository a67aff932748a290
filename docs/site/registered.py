"""Pages of what is registered: a tokenizer or a prior each, quantizers, trained models, recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import reference
from pages import ROOT

from spectok.plugins.registry import list_registered
from spectok.recipes.yaml12 import read_yaml


def listed(kind: str) -> list[dict[str, Any]]:
    """Return what ``spectok list KIND --json`` prints."""
    command = [sys.executable, "-m", "spectok", "list", kind, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def registered_pages(kind: str, recipes: list[dict[str, Any]]) -> dict[str, str]:
    """Return the page of each registered class of a kind, by its name.

    Args:
        kind: ``"tokenizer"`` or ``"prior"``.
        recipes: What is ``listed("recipes")``.
    """
    return {
        name: _page(kind, name, value, recipes) for name, value in list_registered(kind).items()
    }


def quantizers_page() -> str:
    """Return the page of all quantizers, each with its options."""
    parts = ["# Quantizers", "Any of them runs in any tokenizer: `tokenizer.quantizer.name=KEY`."]
    for name, value in list_registered("quantizer").items():
        said = reference.docstring(value, parameters=False)
        parts += [f"## {name}", said, reference.options_table(value)]
    return "\n\n".join(parts) + "\n"


def recipes_page(recipes: list[dict[str, Any]]) -> str:
    """Return the table of all recipes, by folder; their first lines say what was measured."""
    parts = [
        "# Recipes",
        "`spectok train NAME` trains one. [Training](../docs/training.md) says how.",
    ]
    for folder in sorted({recipe["name"].split("/")[0] for recipe in recipes}):
        own = [recipe for recipe in recipes if recipe["name"].split("/")[0] == folder]
        parts += [f"## {folder}", _table(own)]
    return "\n\n".join(parts) + "\n"


def _page(kind: str, name: str, value: type, recipes: list[dict[str, Any]]) -> str:
    own = [recipe for recipe in recipes if _of(recipe, kind) == name]
    parts = [f"# {name}", reference.docstring(value, parameters=False), _more(value)]
    parts += ["## Options", reference.options_table(value)]
    if own:
        parts += ["## Recipes", _table(own)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _more(value: type) -> str:
    """Return where the written pages go on."""
    package = value.__module__.split(".")[0]
    readme = Path("plugins", package, "README.md")
    if (ROOT / readme).exists():
        return f"The paper, how we read it and what was measured: [{package}](../{readme})."
    return "How priors are trained and sampled: [training](../docs/training.md#priors)."


def _of(recipe: dict[str, Any], kind: str) -> str | None:
    """Return the key that a recipe's section of a kind names."""
    section = read_yaml(Path(recipe["path"])).get(kind)
    return section.get("name") if isinstance(section, dict) else section


def _table(recipes: list[dict[str, Any]]) -> str:
    rows = [f"| `{recipe['name']}` | {recipe['summary'].replace('|', '/')} |" for recipe in recipes]
    return "\n".join(["| recipe | |", "|---|---|", *rows])
