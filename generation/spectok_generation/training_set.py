"""The training set of a prior: the tokens of images, or their latents."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from spectok import ImageTokenizer, TokenSpec
from spectok.data import DataConfig, build_dataset
from spectok.data.rows import Captions
from spectok.errors import ConfigError, DataError
from spectok.messages import progress, say
from spectok.places import home
from spectok_generation.conditions import Condition
from spectok_generation.diffusion.latents import encode_latents
from spectok_generation.prior_recipe import PriorRecipe
from spectok_generation.records import tokenizer_record
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.features import Captioned, encode_captions
from spectok_generation.tokens import TokenCache


@dataclass(frozen=True)
class TrainingSet:
    """A data set, and what a prior learns from it.

    Args:
        dataset: Its batches hold what ``inputs`` needs, and ``label`` or ``caption`` if the data
            has them.
        inputs: Batch -> argument of the prior's ``forward``.
        token_spec: Layout of the tokens.
        num_classes: Number of classes; 0 without labels.
        tokenizer: Record of the tokenizer, with the names of the classes.
        captions: All captions of each row of the data, if it has captions.
        text: Record of the text encoder, if batches hold ``text``.
    """

    dataset: Any
    inputs: Callable[[dict[str, Any]], Tensor]
    token_spec: TokenSpec
    num_classes: int
    tokenizer: dict[str, Any]
    captions: Sequence[Captions] | None = None
    text: dict[str, Any] | None = None

    def condition(self, batch: dict[str, Any], name: str | None) -> Condition | None:
        """Return the condition of a batch; for ``name`` see :attr:`Prior.condition_name`."""
        return None if name is None else batch["text" if name == "text" else "label"]


def token_training_set(cache: TokenCache) -> TrainingSet:
    """Return the tokens of a cache as a training set."""
    record = cache.header.tokenizer | {"class_names": cache.header.class_names}
    return TrainingSet(
        cache,
        lambda batch: batch["indices"],
        cache.token_spec,
        cache.num_classes,
        record,
        cache.captions,
    )


def check_latents(recipe: PriorRecipe, has_tokenizer: bool) -> None:
    """Check that a recipe gives a prior of latents what it learns from.

    Raises:
        ConfigError: If it gives tokens or copies, or no tokenizer.
    """
    if not has_tokenizer or recipe.tokens is not None:
        raise ConfigError(
            f"tokens: {recipe.prior['name']} learns the latents of images, not their tokens; give "
            f"--tokenizer and --data instead"
        )
    if recipe.copies != 1:
        raise ConfigError(
            f"copies: {recipe.copies} applies to tokens, but {recipe.prior['name']} learns "
            f"latents, which are computed afresh in every epoch; leave copies out"
        )


def layout_record(tokenizer: ImageTokenizer) -> dict[str, Any]:
    """Return what a prior is built from of its tokenizer's record."""
    shapes = {"image_shape": tokenizer.image_shape, "latent_shape": tokenizer.latent_shape}
    return {name: list(shape) for name, shape in shapes.items()} | {"class_names": None}


def latent_training_set(
    recipe: PriorRecipe, tokenizer: ImageTokenizer, path: str | None
) -> TrainingSet:
    """Return the images of a recipe as a training set of latents, computed batch by batch.

    Args:
        recipe: Recipe of a prior that learns latents.
        tokenizer: A trained tokenizer on the device to train on.
        path: Where it was loaded from.
    """
    dataset = build_dataset(fit_data(recipe.data, tokenizer), seed=recipe.seed)
    say(str(dataset.report))
    check_classes(dataset.labels, dataset.num_classes or 0)
    record = tokenizer_record(tokenizer, absolute(path), recipe.tokenizer_subfolder)
    record |= {"class_names": dataset.class_names}
    return TrainingSet(
        dataset,
        lambda batch: encode_latents(tokenizer, batch["images"]),
        tokenizer.token_spec,
        dataset.num_classes or 0,
        record,
        [dataset.captions_of(row) for row in range(len(dataset))] if dataset.has_captions else None,
    )


def check_classes(labels: np.ndarray | None, num_classes: int) -> None:
    """Check the class of every image, before training sends them to a device unchecked.

    Raises:
        DataError: If one is out of range.
    """
    outside = [] if labels is None else labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise DataError(
            f"class {outside[0]} of the data is outside 0..{num_classes - 1}; number classes from "
            f"0, or leave them out with data.labels=false"
        )


def with_text(training_set: TrainingSet, encoder: TextEncoder, folder: Path) -> TrainingSet:
    """Add the text features of its captions to each batch of a training set.

    Args:
        training_set: Captioned images, or their tokens.
        encoder: Text encoder on the device to run on.
        folder: Folder for the features.

    Raises:
        DataError: If there are no captions, or one is empty.
    """
    different = set(chain.from_iterable(training_set.captions or ()))
    with progress("encoding captions", len(different)) as advance:
        features = encode_captions(encoder, training_set.captions, folder, advance)
    return replace(
        training_set, dataset=Captioned(training_set.dataset, features), text=encoder.record
    )


def fit_data(data: DataConfig, tokenizer: ImageTokenizer) -> DataConfig:
    """Set the size, the channels and the filter of a ``data:`` section to those of a tokenizer."""
    channels, height, _ = tokenizer.image_shape
    fitting: dict[str, Any] = {
        "image_size": data.image_size or height,
        "channels": data.channels or channels,
    }
    fitting["resize_filter"] = data.resize_filter or tokenizer.data_filter
    return data.model_copy(update=fitting)


def absolute(path: str | None) -> str | None:
    """Return the absolute path of a folder, and anything else, such as a hub id, unchanged."""
    folder = None if path is None else home(path)
    return str(Path(folder).resolve()) if folder and os.path.isdir(folder) else path
