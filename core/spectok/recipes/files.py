"""Find recipes by name: YAML files that travel with spectok and with plugins.

A recipe's name is its path below a recipe folder without the suffix, such as
``tokenizers/KEY/DATA``.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from spectok.errors import ConfigError, PluginError, shown
from spectok.places import home
from spectok.plugins.loading import Plugin, installed

NOT_RECIPES = ("accelerate",)
"""Folders of ``configs/`` that hold settings of other programs."""
COMMON = ("data", "train", "text", "losses", "adversarial")
"""Sections that recipes of several kinds have."""
RUN_RECIPE, CHECKPOINTS, MODEL = "recipe.yaml", "checkpoints", "model"
"""What every run keeps in its folder; the model when it has ended."""
MANIFEST = "manifest.json"
"""What every checkpoint has in its folder."""


def is_run_recipe(path: Path) -> bool:
    """Return whether a file is the recipe that a run keeps: it stands for the run beside it."""
    return path.name == RUN_RECIPE and os.path.isdir(path.parent / CHECKPOINTS)


def recipe_of_run(name: str) -> str | None:
    """Return the recipe in the folder of a run; None if a name is not such a folder.

    Args:
        name: What was given for a recipe; a registered recipe's name is none of a folder.
    """
    if name in list_recipes():
        return None
    path = Path(home(name), RUN_RECIPE)
    return str(path) if os.path.isfile(path) else None


def find_recipe(name: str) -> Path | None:
    """Return the file of a recipe, named with or without its first folder; None if there is none.

    Args:
        name: Anything.
    """
    recipes = list_recipes()
    shorter = {recipe.partition("/")[2]: path for recipe, path in recipes.items()}
    return recipes.get(name) or shorter.get(name)


def command_of_recipe(path: Path) -> list[str]:
    """Return the word after ``spectok train`` that trains a recipe, called like its main section.

    Returns:
        Nothing for a tokenizer's, which needs none.
    """
    from spectok.recipes.yaml12 import read_yaml

    recipe = read_yaml(path)
    own = [name for name in recipe if isinstance(recipe[name], dict) and name not in COMMON]
    return [] if "tokenizer" in own else own[:1]


def refuse_folder(name: str) -> None:
    """Refuse the folder of a run, or any other, that was given for a recipe.

    Args:
        name: What was given, and is no recipe's name.

    Raises:
        ConfigError: If it is a folder; says what to do with it.
    """
    if own := recipe_of_run(name):
        raise ConfigError(
            f"{name} is the folder of a run; go on with it: "
            f"{shlex.join(['spectok', 'resume', name])}; or train by its recipe: {shlex.quote(own)}"
        )
    if os.path.isdir(home(name)):
        raise ConfigError(
            f"{name} is a folder, not a recipe; images to train on are given as --data "
            f"{shlex.quote(name)}"
        )


def data_of_run(model: Path) -> dict[str, Any]:
    """Return the ``data:`` section of the recipe beside a model of any kind; empty if none is.

    Args:
        model: Folder of the run, or of the model in it.
    """
    from spectok.recipes.yaml12 import read_yaml  # imports numpy, which finding recipes does not

    for folder in (model, model.absolute().parent):
        if os.path.isfile(folder / RUN_RECIPE):
            recipe = read_yaml(folder / RUN_RECIPE)
            data = recipe.get("data") if isinstance(recipe, dict) else None
            return data if isinstance(data, dict) else {}
    return {}


def builtin_folder() -> Path:
    """Return ``configs/`` of the checkout, or its copy inside an installed package."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent.parent
    in_checkout = package.parent.name == "core" and os.path.isfile(checkout / "pyproject.toml")
    return checkout / "configs" if in_checkout else package / "configs"


def recipe_folders() -> dict[str, Path]:
    """Return every folder of recipes by the plugin it belongs to; ours is ``"spectok"``."""
    found = {"spectok": builtin_folder()}
    plugins = installed()
    for plugin, folder in plugins.call("spectok_recipes"):
        if fault := _folder_fault(folder, plugin):
            plugins.drop(plugin, PluginError(f"spectok_recipes() returns {shown(folder)}, {fault}"))
        else:
            found[f"plugin {plugin.name!r} of {plugin.distribution}"] = folder
    return found


def _folder_fault(folder: Any, plugin: Plugin) -> str | None:
    """Return why a folder cannot be one of recipes; None if it can."""
    if not isinstance(folder, Path):
        return "which is no pathlib.Path"
    if not folder.is_dir():
        return "which is not a folder"
    own = getattr(plugin.module, "__file__", None)
    if folder.resolve() in Path(own or "/").resolve().parents[1:]:
        return "which holds more than the plugin's own package"
    return None


def list_recipes() -> dict[str, Path]:
    """Return every recipe by name, sorted.

    Raises:
        PluginError: If two folders hold a recipe of one name.
    """
    found: dict[str, Path] = {}
    owner: dict[str, str] = {}
    for provider, folder in recipe_folders().items():
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name.split("/")[0] in NOT_RECIPES:
                continue
            if name in found:
                raise PluginError(
                    f"recipe {name!r} exists twice: in {owner[name]} and in {provider}; "
                    "rename one of them"
                )
            found[name], owner[name] = path, provider
    return dict(sorted(found.items()))
