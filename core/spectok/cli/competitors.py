"""What ``spectok compare`` is given: keys, recipes and trained models, found and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectok.cli.train import DEFAULT_DATA, recipe_for
from spectok.errors import ConfigError
from spectok.loading import UNTRAINED
from spectok.places import home, remark_taken

if TYPE_CHECKING:
    from spectok.evaluation.comparison import Competitor
    from spectok.training.recipe import TokenizerRecipe

FOLDER = "compare"


def check_competitors(names: list[str], data: str | None, overrides: list[str]) -> None:
    """Check what is to be compared, before anything is imported to train or measure it.

    Args:
        names: Tokenizers.
        data: The argument of ``--data``.
        overrides: Settings for all.

    Raises:
        ConfigError: If no name is given, or there is no such recipe.
        UnknownNameError: If a name is none that is known.
        DataError: If images are not there.
    """
    from spectok.data.choice import check_places
    from spectok.training.recipe import TokenizerRecipe

    if not names:
        raise ConfigError("nothing to compare; give keys, recipes or folders of trained models")
    for name in names:
        if not is_trained(name):
            recipe, changes = recipe_to_train(name, data)
            check_places(recipe, [*changes, *overrides], TokenizerRecipe)


def name_competitors(
    names: list[str], data: str | None, overrides: list[Any]
) -> dict[str, Competitor]:
    """Return the tokenizers to compare, by label.

    Raises:
        ConfigError: If two have the same label.
    """
    from spectok.loading import model_folder
    from spectok.trained.names import find_model

    trained = {name for name in names if is_trained(name)}
    recipes = {name: resolve(name, data, overrides) for name in names if name not in trained}

    from spectok.evaluation.comparison import find_competitor

    found: dict[str, Competitor] = {}
    for name in names:
        label = label_of(name)
        if label in found:
            raise ConfigError(
                f"{found[label].source} and {name} would both be called {label!r}; give one of "
                "them as a recipe file or folder of another name"
            )
        is_folder = name in trained and find_model(name) is None
        source = model_folder(name) if is_folder else name
        found[label] = find_competitor(source, recipes.get(name))
    return found


def is_trained(name: str) -> bool:
    """Return whether what is to be compared is a trained model: by its name, or its folder."""
    from spectok.plugins.registry import list_tokenizers
    from spectok.recipes.files import list_recipes
    from spectok.trained.names import is_model
    from spectok.training.recipe import TokenizerRecipe

    if is_model(name, TokenizerRecipe.folder):
        return True
    known = {*list_recipes(), *list_tokenizers()}
    if name in known or f"{TokenizerRecipe.folder}/{name}" in known:
        remark_taken(name, UNTRAINED if name in list_tokenizers() else "a tokenizer to train")
        return False
    return os.path.isdir(home(name))


def recipe_to_train(name: str, data: str | None) -> tuple[str, list[Any]]:
    """Return the recipe to train, and the override for its data; one made for both comes first.

    Args:
        name: A key, a recipe or a file.
        data: The argument of ``--data``.
    """
    from spectok.data.choice import data_override
    from spectok.recipes.files import list_recipes

    prepared = f"{FOLDER}/{data or DEFAULT_DATA}/{name}"
    chosen = prepared if prepared in list_recipes() else recipe_for(name, data)
    if chosen is not None:
        return chosen, []
    return name, [] if data is None else [data_override(data)]


def resolve(name: str, data: str | None, overrides: list[Any]) -> TokenizerRecipe:
    """Return the recipe to train.

    Args:
        name: A key, a recipe or a file.
        data: The argument of ``--data``.
        overrides: Settings for all.
    """
    from spectok.training.recipe import load_tokenizer_recipe

    recipe, changes = recipe_to_train(name, data)
    if changes and data == load_tokenizer_recipe(recipe).data.name:
        changes = []  # its own settings of these data stay
    return load_tokenizer_recipe(recipe, [*changes, *overrides])


def label_of(name: str) -> str:
    """Return a competitor's label: the key itself, or the name of its file or folder."""
    path = Path(name)
    path = path.parent if path.name in ("model", "recipe.yaml") else path
    if path.suffix in (".yaml", ".yml") or os.path.isdir(home(path)):
        return path.stem
    return "-".join(part for part in path.parts if part not in (FOLDER, "tokenizers"))
