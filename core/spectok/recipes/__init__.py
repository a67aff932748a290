"""Recipes: YAML plus dotted overrides, validated into typed sections.

    name or file ── read ──> dict ── overrides a.b=c ──> dict ── resolve ──> recipe object

A trainer subclasses :class:`Recipe`; a constructor's signature is the schema of a registered
object's options (:class:`Section`, :class:`Registered`, :func:`validate_options`). The names below
load on first use, so ``import spectok.recipes`` does not import pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.recipes.files import list_recipes
    from spectok.recipes.options import SUPPLIED, validate_named, validate_options
    from spectok.recipes.recipe import (
        Override,
        Recipe,
        apply_overrides,
        load_recipe,
        read_recipe,
        resolve_recipe,
    )
    from spectok.recipes.schema import QuantizerOption, Registered, Section, validate_section
    from spectok.recipes.yaml12 import dump_yaml, parse_yaml

_FILES, _OPTIONS = "spectok.recipes.files", "spectok.recipes.options"
_RECIPE, _SCHEMA = "spectok.recipes.recipe", "spectok.recipes.schema"
_YAML = "spectok.recipes.yaml12"
_HOME = {
    "SUPPLIED": _OPTIONS,
    "Override": _RECIPE,
    "QuantizerOption": _SCHEMA,
    "Recipe": _RECIPE,
    "Registered": _SCHEMA,
    "Section": _SCHEMA,
    "apply_overrides": _RECIPE,
    "dump_yaml": _YAML,
    "list_recipes": _FILES,
    "load_recipe": _RECIPE,
    "parse_yaml": _YAML,
    "read_recipe": _RECIPE,
    "resolve_recipe": _RECIPE,
    "validate_named": _OPTIONS,
    "validate_options": _OPTIONS,
    "validate_section": _SCHEMA,
}

__all__ = [
    "SUPPLIED",
    "Override",
    "QuantizerOption",
    "Recipe",
    "Registered",
    "Section",
    "apply_overrides",
    "dump_yaml",
    "list_recipes",
    "load_recipe",
    "parse_yaml",
    "read_recipe",
    "resolve_recipe",
    "validate_named",
    "validate_options",
    "validate_section",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
