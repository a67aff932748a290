"""Several tokenizers on equal terms: trained alike or loaded, and measured by one protocol.

The folder of a comparison holds one run per tokenizer, and ``comparison.json``, ``comparison.md``
and ``comparison.png``. Finished runs in it are not trained again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.errors import CheckpointError, ConfigError, shown
from spectok.evaluation.checks import POSITIONS
from spectok.evaluation.measuring import Evaluation, evaluate
from spectok.evaluation.numbers import record_numbers
from spectok.evaluation.protocol import compare_results
from spectok.evaluation.terms import (
    bits_per_image,
    check_equal,
    data_section,
    images_per_step,
    recipe_of_run,
    seconds_of_run,
    terms_of,
)
from spectok.loading import load_tokenizer, model_folder
from spectok.recipes.files import MODEL, RUN_RECIPE
from spectok.recipes.options import upgrade_recipe
from spectok.recipes.yaml12 import read_yaml
from spectok.tokenizer import ImageTokenizer
from spectok.training import train_tokenizer
from spectok.training.recipe import TokenizerRecipe
from spectok.training.same_run import flatten, with_later_options
from spectok.training.tokenizer import rehearse_tokenizer
from spectok.training.train_config import INCIDENTAL
from spectok.writing import write_text

ALIKE = "tokenizers are compared on equal terms: make them equal"
FREE = {"output", *(f"train.{name}" for name in INCIDENTAL)}
"""Settings that two runs of one recipe need not share."""


@dataclass(frozen=True)
class Competitor:
    """One tokenizer of a comparison.

    Args:
        source: What was given: a key, a recipe, or the folder of a trained model.
        recipe: How it is, or was, trained. None: a trained model without its recipe.
        model: Folder of the trained model. None: it is yet to be trained.
    """

    source: str
    recipe: TokenizerRecipe | None
    model: Path | None = None

    @property
    def bits(self) -> float:
        """Bits per image."""
        if self.recipe is not None:
            return bits_per_image(self.recipe)
        return load_tokenizer(self.model or self.source).token_spec.bits_per_image

    def terms(self) -> dict[str, Any]:
        """Return what must be equal for all; empty for a model without its recipe."""
        return {} if self.recipe is None else terms_of(self.recipe)


@dataclass
class Comparison:
    """What a comparison found.

    Args:
        record: The content of ``comparison.json``.
        rows: Label -> its version of the same images; the originals come first.
    """

    record: dict[str, Any]
    rows: dict[str, Float[Tensor, "n c h w"]] = field(default_factory=dict)


def check_terms(
    competitors: Mapping[str, Competitor],
    bits: float | None = None,
    *,
    allow_unequal_bits: bool = False,
) -> None:
    """Refuse to compare tokenizers that see, spend or train differently.

    Args:
        competitors: Label -> tokenizer.
        bits: Bits per image that each must spend. None: any number, the same for all.
        allow_unequal_bits: Accept different numbers of bits.

    Raises:
        ConfigError: Names what differs, and by how much.
    """
    terms = {label: competitor.terms() for label, competitor in competitors.items()}
    for what in ("images", "steps", "images per step"):
        check_equal(what, {label: found.get(what) for label, found in terms.items()}, ALIKE)
    spent = {label: competitor.bits for label, competitor in competitors.items()}
    if not allow_unequal_bits:
        check_equal("bits per image", spent, f"{ALIKE}, or give --allow-unequal-bits")
    for label, found in spent.items():
        if bits is not None and found != bits:
            raise ConfigError(
                f"{label} spends {found:g} bits per image, not {bits:g}; change its tokens or its "
                f"codebook, or give --bits {found:g}"
            )


def compare(
    competitors: Mapping[str, Competitor],
    data: DataConfig,
    output: Path,
    how: Evaluation,
    *,
    num_shown: int = 8,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Train the tokenizers that are not trained yet, and measure all on the same held-out images.

    Args:
        competitors: Label -> tokenizer, checked by :func:`check_terms`.
        data: Held-out images.
        output: Folder of the comparison.
        how: How to measure them.
        num_shown: Number of images in the picture.
        on_stage: Called with a description of each stage as it begins.

    Raises:
        ConfigError: If a folder holds a run of another recipe.
        InputError: If results were measured by different protocols.
    """
    for label, competitor in competitors.items():  # before hours of training
        if competitor.model is None and competitor.recipe is not None:
            check_run(competitor.recipe, output / label)
            if not is_finished(output / label):
                rehearse_tokenizer(competitor.recipe)
    dataset = build_dataset(data, train=False)
    shown = torch.stack([dataset[i]["images"] for i in range(min(num_shown, len(dataset)))])
    results, comparison = {}, Comparison({}, {"original": shown})
    for label, competitor in competitors.items():
        folder = competitor.model or output / label
        if competitor.model is None and not is_finished(folder):
            on_stage(f"train {label}")
            train(competitor, folder)
        on_stage(f"evaluate {label}")
        tokenizer = load(folder)
        results[label] = evaluate(tokenizer, dataset, how)
        results[label] |= describe_training(competitor, folder)
        comparison.rows[label] = reconstruct(tokenizer, shown)
        if competitor.model is None:
            write_json(results[label], folder / "evaluation.json")
            record_numbers(tokenizer, folder / MODEL, results[label], data)
    comparison.record = {
        "data": describe_data(dataset, data),
        "protocol": compare_results(results),
        "machine": next(iter(results.values()))["machine"],
        "tokenizers": {label: shorten(result) for label, result in results.items()},
    }
    return comparison


def train(competitor: Competitor, folder: Path) -> None:
    """Train a tokenizer, or resume where an earlier comparison stopped."""
    if competitor.recipe is None:
        raise ConfigError(f"{competitor.source} has neither weights nor a recipe to train")
    train_tokenizer(competitor.recipe, folder, resume="auto")


def is_finished(folder: Path) -> bool:
    """Return whether a run has its final model."""
    return (folder / MODEL / "config.json").is_file()


def check_run(recipe: TokenizerRecipe, folder: Path) -> None:
    """Refuse a folder that holds a run of another recipe.

    Options that came later are taken for what the run's own version did.

    Raises:
        ConfigError: Names the first setting that differs.
    """
    path = folder / RUN_RECIPE
    if not path.is_file():
        return
    raw = read_yaml(path)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} holds no recipe; give another --output")
    for key, (old, new) in differing_settings(raw, recipe.model_dump(mode="json")).items():
        raise ConfigError(
            f"{folder} holds a run with {key} {shown(old)}, not {shown(new)}; give another --output"
        )


def differing_settings(
    recorded: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two recipes are trained differently: name -> old and new.

    Args:
        recorded: The recipe of a run; options that came later are what its own version did.
        current: A recipe of this version.
    """
    new = flatten(upgrade_recipe(current))
    old = with_later_options(flatten(upgrade_recipe(recorded)), new)
    names = sorted({*old, *new} - FREE)
    return {key: (old.get(key), new.get(key)) for key in names if old.get(key) != new.get(key)}


def load(folder: Path) -> ImageTokenizer:
    """Load a trained tokenizer, on the GPU if there is one."""
    inside = folder / MODEL if is_finished(folder) else folder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = load_tokenizer(inside)
    return tokenizer.to(device).eval()


@torch.no_grad()
def reconstruct(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Return images encoded to tokens and decoded again."""
    indices = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
    return tokenizer.decode(indices).float().cpu()


def describe_training(competitor: Competitor, folder: Path) -> dict[str, Any]:
    """Return what is known about a tokenizer's training."""
    recipe, run = competitor.recipe, folder.parent if folder.name == MODEL else folder
    found: dict[str, Any] = {"source": competitor.source}
    if recipe is not None:
        seconds = seconds_of_run(run)
        found |= {"steps": recipe.train.steps, "images_per_step": images_per_step(recipe)}
        found |= {"learning_rate": recipe.train.learning_rate, "seed": recipe.seed}
        found |= {"training_seconds": seconds}
        found |= {"seconds_per_step": None if seconds is None else seconds / recipe.train.steps}
    return found


def describe_data(dataset: ImageDataset, data: DataConfig) -> dict[str, Any]:
    """Return which images were held out, without their path on this machine."""
    return data_section(data) | {"num_images": len(dataset), "fingerprint": dataset.fingerprint}


def shorten(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without what all results share, and without numbers per position."""
    rest = {key: value for key, value in result.items() if key not in ("protocol", "machine")}
    levels = [{k: v for k, v in level.items() if k != POSITIONS} for level in result["levels"]]
    return rest | {"levels": levels}


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file.

    Raises:
        CheckpointError: If it cannot be written.
    """
    write_text(path, json.dumps(value, indent=1) + "\n", CheckpointError)


def find_competitor(name: str, recipe: TokenizerRecipe | None) -> Competitor:
    """Return the competitor that a name stands for.

    Args:
        name: The folder of a trained model or of its run, the name of one, a key, or a recipe.
        recipe: The recipe that a key or recipe name resolved to. None: it is a trained model.
    """
    if recipe is None:
        folder = Path(model_folder(name))
        return Competitor(name, recipe_of_run(folder), folder)
    return Competitor(name, recipe)
