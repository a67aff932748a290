"""Resolve the argument of ``--data``, and check that images are there before much is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from spectok.data.data_config import kind_of_path
from spectok.data.listing import local_path
from spectok.data.own import check_exists, own_data
from spectok.errors import UnknownNameError
from spectok.places import names_a_place, remark_taken
from spectok.plugins import registry
from spectok.recipes.recipe import Override, Recipe, apply_overrides, read_recipe


def data_override(choice: str) -> Override:
    """Return the override for ``--data``: a registered data set, or one's own data.

    A registered name means that data set; ``./name`` or ``name/`` is what lies here.

    Raises:
        UnknownNameError: If it is neither a data set nor a path.
    """
    if choice in registry.names("dataset"):
        remark_taken(choice, "the registered data set")
        return "data", {"name": choice}
    if not local_path(choice).exists() and not names_a_place(choice):
        note = "A directory of images, a parquet file, tar shards or a hub id also work"
        raise UnknownNameError("dataset", choice, registry.names("dataset"), note)
    return "data", {"name": kind_of_path(choice), "path": choice}


def check_choice(choice: str | None) -> None:
    """Check that what ``--data`` was given is there, as far as this machine can tell.

    Args:
        choice: A data set, a path or a hub id. None: nothing was given.

    Raises:
        DataError: If a local path does not exist.
        UnknownNameError: If it is neither a data set nor a path.
    """
    if choice is not None:
        check_section(data_override(choice)[1])


def check_section(section: Any) -> None:
    """Check that the path in a ``data:`` section is there, as far as this machine can tell.

    Args:
        section: As written, not yet validated.

    Raises:
        DataError: If a local path does not exist.
    """
    path = section.get("path") if isinstance(section, Mapping) else None
    if isinstance(path, str):
        name = section.get("name")
        check_exists(path, name if name in own_data() else kind_of_path(path))


def check_places(name: str, overrides: Iterable[Override], model: type[Recipe]) -> None:
    """Check that what a recipe builds on is where it says, before a class of it is imported.

    Args:
        name: A YAML file, the name of a recipe, or a registered key.
        overrides: As for :func:`spectok.recipes.recipe.load_recipe`.
        model: The kind of recipe.

    Raises:
        ConfigError: If there is no such file, or something is no setting.
        UnknownNameError: If nothing has that name.
        DataError: If images are not there.
        SpectokError: As :meth:`spectok.recipes.recipe.Recipe.check_places` says.
    """
    raw = apply_overrides(read_recipe(name, model), overrides)
    check_section(raw.get("data"))
    model.check_places(raw)
