"""What a shell offers when the tabulator key is pressed: names, and folders that are here."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable


def complete_recipe(incomplete: str) -> list[str]:
    """Return keys, recipes with and without their first folder, and YAML files."""
    from spectok.plugins.registry import list_tokenizers
    from spectok.recipes.files import list_recipes

    recipes = list_recipes()
    short = {name.partition("/")[2] for name in recipes}
    files = [path for path in _paths(incomplete) if path.endswith(("/", ".yaml", ".yml"))]
    return _starting({*list_tokenizers(), *recipes, *short, *files}, incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Return trained models by name, keys, and folders."""
    from spectok.plugins.registry import list_tokenizers, names

    folders = [path for path in _paths(incomplete) if path.endswith("/")]
    return _starting({*names("model"), *list_tokenizers(), *folders}, incomplete)


def complete_folder(incomplete: str) -> list[str]:
    """Return folders."""
    return _starting([path for path in _paths(incomplete) if path.endswith("/")], incomplete)


def complete_path(incomplete: str) -> list[str]:
    """Return files and folders."""
    return _starting(_paths(incomplete), incomplete)


def complete_data(incomplete: str) -> list[str]:
    """Return registered data sets, and files and folders."""
    from spectok.plugins.registry import names

    return _starting({*names("dataset"), *_paths(incomplete)}, incomplete)


def _paths(incomplete: str) -> list[str]:
    """Return the paths that a word may become, folders with a slash at their end."""
    found = glob.glob(glob.escape(os.path.expanduser(incomplete)) + "*")
    return [path + "/" if os.path.isdir(path) else path for path in found]


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    home = os.path.expanduser(incomplete)
    return sorted(word for word in words if word and word.startswith((incomplete, home)))
