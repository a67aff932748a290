"""Recipes: YAML plus dotted overrides, validated into typed sections.

    name or file ── read ──> dict ── overrides a.b=c ──> dict ── resolve ──> recipe object

``load_recipe`` serves every kind of recipe: a trainer subclasses :class:`Recipe`, says which
section names a registered object, and gets names, files, overrides and messages from here.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, Field

from spectok.errors import SHOWN, ConfigError, UnknownNameError, shown
from spectok.places import missing
from spectok.plugins import registry
from spectok.recipes.files import is_run_recipe, list_recipes, refuse_folder
from spectok.recipes.options import SUPPLIED, check_keys, validate_named, validate_registered
from spectok.recipes.schema import (
    Registered,
    Section,
    subsection,
    unknown_key,
    validate_section,
)
from spectok.recipes.usual_names import our_name
from spectok.recipes.yaml12 import parse_yaml, read_yaml

Override = str | tuple[str, Any]
RecipeT = TypeVar("RecipeT", bound="Recipe")


class Recipe(Section):
    """Base of all recipes.

    A field marked ``Registered(kind)`` has a ``name`` that a plugin registers: a ``dict`` field is
    validated against that object's constructor, any other field only has its name looked up.

    Args:
        seed: Seed of everything that is drawn.
        output: Folder of the run. None: chosen from the names.

    Attributes:
        main: The section a bare registered key stands for, such as ``"tokenizer"``.
        folder: Where recipes of this kind live, such as ``"tokenizers"``.
    """

    main: ClassVar[str]
    folder: ClassVar[str]

    seed: int = Field(0, ge=0, lt=1 << 53)
    output: str | None = None

    @classmethod
    def complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Fill in what one section implies about another, before validation."""
        return raw

    @classmethod
    def check_places(cls, raw: Mapping[str, Any]) -> None:
        """Check that what a recipe builds on, besides its images, is where it says.

        Nothing is imported that computes, and no hub is asked.

        Args:
            raw: The recipe with its overrides, not yet validated.

        Raises:
            SpectokError: If something is not there.
        """


def load_recipe(
    name_or_path: str | os.PathLike[str],
    overrides: Iterable[Override],
    model: type[RecipeT],
) -> RecipeT:
    """Read, override and validate a recipe.

    Args:
        name_or_path: A YAML file, the name of a recipe (``tokenizers/KEY/DATA``, or without its
            first folder), or a registered key, which means that key's recipe ``default``, or
            defaults throughout if it has none.
        overrides: ``"a.b=c"`` with ``c`` in YAML, or pairs of dotted path and value. Changing
            ``<section>.name`` drops the section's other settings.
        model: The kind of recipe.

    Raises:
        ConfigError: One line per problem, each with its dotted path.
        UnknownNameError: If nothing has that name.
    """
    raw = read_recipe(os.fspath(name_or_path), model)
    return resolve_recipe(apply_overrides(raw, overrides), model)


def read_recipe(name: str, model: type[Recipe]) -> dict[str, Any]:
    """Return a recipe as written, not yet validated.

    The recipe of a run means the folder it lies in, also where the run was copied or moved: an
    ``output`` that an earlier version wrote into it is left out.

    Raises:
        ConfigError: If a file is missing or is not a YAML mapping.
        UnknownNameError: If no recipe and no registered key has that name.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        found = _find(name, model)
        if found is None:
            return {model.main: {"name": name}}
        path = found
    if not os.path.exists(path):
        stem, recipes = path.with_suffix("").as_posix(), list_recipes()
        hint = _near(stem, recipes)
        what = f"no recipe file {name}{hint}" if hint else f"no recipe file: {missing(name)}"
        raise ConfigError(f"{what}; 'spectok list recipes' shows all")
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, such as '{model.main}: …'")
    if is_run_recipe(path):
        raw.pop("output", None)
    return raw


def of_data(overrides: Iterable[str]) -> list[str]:
    """Return settings of the data as a recipe has them: ``path=DIR`` is ``data.path=DIR``."""
    return [f"data.{override.removeprefix('data.')}" for override in overrides]


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """Return a copy of a recipe with dotted overrides applied, sections before their contents.

    Raises:
        ConfigError: If an override is not ``key=value``, or goes into what is not a section.
    """
    raw = copy.deepcopy(dict(raw))
    pairs = [_parse(override) for override in overrides]
    pairs.sort(key=lambda pair: len(pair[0]) - (pair[0][-1] == "name"))
    for path, value in pairs:
        section = raw
        for depth, part in enumerate(path[:-1]):
            section[part] = _as_section(section.get(part), ".".join(path[: depth + 1]))
            section = section[part]
        if path[-1] == "name" and section.get("name") != value:
            section.clear()  # they are the options of another class
        section[_current_name(path, section)] = value
    return raw


def _current_name(path: list[str], section: dict[str, Any]) -> str:
    """Return the present name of the option to override, whose earlier name leaves its section."""
    key, kind = path[-1], path[0]
    if len(path) != 2 or kind not in registry.HOOKS:
        return key
    renamed = registry.renamed_options(kind, str(section.get("name")))
    current = renamed.get(key, key)
    for before, now in renamed.items():
        if now == current:
            section.pop(before, None)
    return current


def resolve_recipe(raw: Mapping[str, Any], model: type[RecipeT]) -> RecipeT:
    """Validate a recipe: the registered names, then what sections imply, then every key.

    What is wrong without a look at the registered classes is told before these are imported, which
    takes seconds.

    Raises:
        ConfigError: One line per problem.
    """
    named = _named_sections(model)
    unknown = [_unknown_section(key, model) for key in raw if key not in model.model_fields]
    raw, problems = {key: raw[key] for key in raw if key in model.model_fields}, []
    for name, kind in named.items():
        raw[name] = _default_name(model, name) | _as_section(raw.get(name), name)
        problems += _problems(_check_name, kind, raw[name], name)
    if problems:
        _raise_all(unknown + problems)
    _raise_all(unknown + _plain_problems(raw, model))
    raw, problems = model.complete(raw), []
    for name, kind in named.items():
        if typing.get_origin(model.model_fields[name].annotation) is dict:
            problems += _problems(_validate_into, raw, name, kind)
    for name in model.model_fields.keys() - named:
        section = subsection(model, name)
        if section and _named_sections(section) and isinstance(raw.get(name), Mapping):
            problems += _problems(_fill_in, raw, name, section)
    problems += _problems(validate_section, model, raw, "")
    _raise_all(problems)
    return validate_section(model, raw, "")


def _plain_problems(raw: Mapping[str, Any], model: type[Recipe]) -> list[str]:
    """Return the problems of a recipe that are found without importing a registered class."""
    problems: list[str] = []
    for name, kind in _named_sections(model).items():
        if typing.get_origin(model.model_fields[name].annotation) is dict:
            registered, supplied = raw[name]["name"], SUPPLIED.get(kind, ())
            known = registry.known_options(kind, registered)
            renamed = registry.renamed_options(kind, registered) if known else ()
            problems += _problems(check_keys, raw[name], name, known, supplied, renamed)
    for name in model.model_fields:
        section = subsection(model, name)
        if section and isinstance(raw.get(name), Mapping):
            problems += _problems(validate_section, section, raw[name], name)
    return problems


def _find(name: str, model: type[Recipe]) -> Path | None:
    """Return the file of a recipe, or None for a key that has no recipe called ``default``."""
    recipes, keys = list_recipes(), registry.names(model.main)
    if name in keys:
        return recipes.get(f"{model.folder}/{name}/default")
    for candidate in (name, f"{model.folder}/{name}"):
        if candidate in recipes:
            return recipes[candidate]
    refuse_folder(name)
    if "/" in name:
        near = _near(name, recipes)
        what = f"no recipe {name}{near}" if near else f"no recipe {name}: {missing(name)}"
        raise ConfigError(f"{what}; see 'spectok list recipes'")
    note = "The name of a recipe ('spectok list recipes') or a YAML file also works"
    raise UnknownNameError(model.main, name, keys, note)


def _near(name: str, recipes: Iterable[str]) -> str:
    """Suggest the recipe with the closest name, whether or not its first folder is given."""
    known = {recipe: recipe for recipe in recipes}
    known |= {recipe.partition("/")[2]: recipe for recipe in recipes}
    close = difflib.get_close_matches(name.removeprefix("configs/"), known, n=1, cutoff=0.5)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def _parse(override: Override) -> tuple[list[str], Any]:
    if re.search("[\ud800-\udfff]", override if isinstance(override, str) else override[0]):
        raise ConfigError(f"override {shown(override)} holds a character that no text can have")
    if not isinstance(override, str):
        return override[0].split("."), override[1]
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"override {shown(override)} is not key=value, such as train.steps=2000")
    return path, parse_yaml(text, f"override {key[:SHOWN]}")


def _as_section(value: Any, path: str) -> dict[str, Any]:
    """Return a section as a dict; a bare string is its name."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: {shown(value)} is a value, not a section with keys")
    return dict(value)


def _named_sections(model: type[BaseModel]) -> dict[str, str]:
    markers = {
        name: [m.kind for m in field.metadata if isinstance(m, Registered)]
        for name, field in model.model_fields.items()
    }
    return {name: kinds[0] for name, kinds in markers.items() if kinds}


def _default_name(model: type[Recipe], section: str) -> dict[str, str]:
    name = getattr(model.model_fields[section].get_default(), "name", None)
    return {} if name is None else {"name": name}


def _check_name(kind: str, section: dict[str, Any], path: str) -> None:
    if not isinstance(section.get("name"), str):
        raise ConfigError(f"{path}.name: missing; one of {', '.join(registry.names(kind))}")
    try:
        registry.check_name(kind, section["name"])
    except UnknownNameError as error:
        raise ConfigError(f"{path}.name: {error}") from error


def _validate_into(raw: dict[str, Any], name: str, kind: str) -> None:
    raw[name] = validate_named(kind, raw[name], name)


def _fill_in(raw: dict[str, Any], name: str, section: type[BaseModel]) -> None:
    raw[name] = validate_registered(section, raw[name], name)


def _unknown_section(key: str, model: type[Recipe]) -> str:
    if (path := path_of_setting(key, model)) is not None:
        return f"{key}: unknown key (did you mean {path!r}?)"
    return str(unknown_key("", key, model.model_fields))


def path_of_setting(key: str, model: type[Recipe]) -> str | None:
    """Return the dotted path of a setting given without its section, or by its usual name."""
    for name in (key, our_name(key)):
        for section in model.model_fields:
            if name in getattr(subsection(model, section), "model_fields", {}):
                return f"{section}.{name}"
    return our_name(key) if our_name(key) in model.model_fields else None


def _problems(check: Callable[..., Any], *args: Any) -> list[str]:
    """Run one check, and return the lines of its error."""
    try:
        check(*args)
    except ConfigError as error:
        return list(error.problems)
    return []


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ConfigError(*dict.fromkeys(problems))  # some are found twice
