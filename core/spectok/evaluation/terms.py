"""Equal terms: what must agree before the numbers of two tokenizers may share a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spectok.data import DataConfig
from spectok.errors import ConfigError
from spectok.loading import load_tokenizer
from spectok.recipes.files import RUN_RECIPE
from spectok.training.log import LOG, read_log
from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe


def bits_per_image(recipe: TokenizerRecipe) -> float:
    """Return the number of bits that the tokens of one image take."""
    options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
    with torch.device("meta"):  # the layout alone, without weights
        return load_tokenizer(recipe.tokenizer["name"], **options).token_spec.bits_per_image


def images_per_step(recipe: TokenizerRecipe) -> int:
    """Return how many images one process takes per optimiser step."""
    return recipe.train.batch_size * recipe.train.gradient_accumulation


def data_section(data: DataConfig) -> dict[str, Any]:
    """Return the settings of a ``data:`` section that say which images it means, without a path."""
    settings = data.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
    return {"name": data.name, "split": data.split} | settings


def terms_of(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return what must be equal, besides the bits per image, for recipes that are compared."""
    return {
        "images": recipe.data.model_dump(mode="json", exclude_defaults=True),
        "steps": recipe.train.steps,
        "images per step": images_per_step(recipe),
    }


def check_equal(what: str, values: Mapping[str, Any], remedy: str) -> None:
    """Refuse values that differ.

    Args:
        what: The name of the values, in the plural.
        values: Label -> value; None if it is not known.
        remedy: What to do about it.

    Raises:
        ConfigError: Lists all of them.
    """
    known = [value for value in values.values() if value is not None]
    if any(value != known[0] for value in known):
        listing = ", ".join(f"{label} {_show(value)}" for label, value in values.items())
        raise ConfigError(f"{what} differ ({listing}); {remedy}")


def recipe_of_run(model: Path) -> TokenizerRecipe | None:
    """Return the recipe that a trained model's run recorded; None if it is not beside the model.

    Args:
        model: Folder of the run, or of the model in it.
    """
    for folder in (model, model.absolute().parent):
        if (folder / RUN_RECIPE).is_file():
            return load_tokenizer_recipe(folder / RUN_RECIPE)
    return None


def seconds_of_run(folder: Path) -> float | None:
    """Return the seconds of training over all resumptions, from a run's log."""
    records = read_log(folder / LOG)
    seconds = records[-1].get("seconds") if records else None
    return seconds if isinstance(seconds, (int, float)) else None


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
