"""From the name of a registered trained model to its folder; nothing is asked of a hub."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from spectok.errors import CheckpointError, ConfigError, did_you_mean
from spectok.messages import note
from spectok.places import is_path, remark_taken
from spectok.plugins import registry
from spectok.recipes.files import list_recipes
from spectok.trained.model import KINDS, TrainedModel

LISTED = "'spectok list models' shows what there is"


def find_model(name: str, kinds: Sequence[str] = KINDS) -> Path | None:
    """Return the folder of a registered trained model.

    Args:
        name: What was given for a model: such a name, or anything else.
        kinds: What it may be; see :data:`spectok.trained.KINDS`.

    Returns:
        None if it is no such name, such as ``./name``. A note says so where a local folder has the
        name too.

    Raises:
        ConfigError: If it is a model of another kind.
        CheckpointError: If its folder is missing, or the name is empty.
    """
    if not name:  # as a shell's variable that is not set; a path would mean this directory
        raise CheckpointError("the name of a model is empty; for this directory, give '.'")
    if is_path(name) or name not in registry.names("model"):
        return None
    model: TrainedModel = registry.get_registered("model", name)
    if model.kind not in kinds:
        raise ConfigError(f"{name!r} names a trained {model.kind}, not a {kinds[0]}; {LISTED}")
    if not model.folder.is_dir():
        raise CheckpointError(
            f"{name!r} is registered by {registry.provider('model', name)}, whose folder "
            f"{model.folder} is missing; install that package again"
        )
    remark_taken(name, "the trained model that is installed")
    return model.folder


def is_model(name: str, recipes: str) -> bool:
    """Return whether a name that may also be a recipe's is that of a registered trained model.

    The model comes first; a note says so, once, where there is a recipe of the same name.

    Args:
        name: What was given for a model or a recipe.
        recipes: Folder of the recipes whose names may be given without it.
    """
    if find_model(name) is None:
        return False
    if f"{recipes}/{name}" in list_recipes():
        _say_model_wins(name, recipes)
    return True


def similar_model(name: str) -> str:
    """Return ``" (did you mean 'x'?)"`` for the registered trained model of the closest name."""
    return did_you_mean(name, registry.names("model"))


@functools.cache
def _say_model_wins(name: str, recipes: str) -> None:
    note(f"{name} is a trained model here; to train one by the recipe, write {recipes}/{name}")
