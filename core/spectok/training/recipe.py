"""The recipe of a tokenizer: which model, which images, how trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from spectok.data.data_config import DataConfig
from spectok.data.own import OwnData
from spectok.errors import ConfigError, SpectokError
from spectok.loading import check_trained
from spectok.plugins import registry
from spectok.recipes.recipe import Override, Recipe, load_recipe
from spectok.recipes.schema import Registered, section_model
from spectok.training.loss_config import AdversarialConfig, LossConfig
from spectok.training.train_config import TrainConfig


class TokenizerRecipe(Recipe):
    """What ``spectok train`` reads.

    Args:
        tokenizer: ``name`` and constructor options of a registered tokenizer.
        data: Images to train on.
        train: How to train.
        losses: What it is trained for besides its own terms, or instead of them.
        adversarial: The discriminator to train it against.
        init_from: A trained tokenizer of the same options, whose weights to start from: the folder
            of its model or of its run, or a hub id. None: random weights.
    """

    main: ClassVar[str] = "tokenizer"
    folder: ClassVar[str] = "tokenizers"

    tokenizer: Annotated[dict[str, Any], Registered("tokenizer")]
    data: Annotated[DataConfig, Registered("dataset")] = DataConfig.model_validate({})
    train: TrainConfig = TrainConfig.model_validate({})
    losses: LossConfig | None = None
    adversarial: AdversarialConfig | None = None
    init_from: str | None = None

    @classmethod
    def complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Make tokenizer and data agree on image size and channels; either may leave them out.

        If neither gives them, they are the data set's own. Your own images have no size of their
        own; for them it is the constructor's default.

        Raises:
            ConfigError: If both give one, and they differ.
        """
        tokenizer, data = dict(raw["tokenizer"]), dict(raw["data"])
        known = section_model(registry.get_tokenizer(tokenizer["name"])).model_fields
        source = registry.get_dataset(data["name"])
        card = None if isinstance(source, OwnData) else source.describe()
        for ours, theirs in {"image_size": "image_size", "channels": "in_channels"}.items():
            if theirs not in known:
                continue
            wanted, given = tokenizer.get(theirs), data.get(ours)
            if wanted is not None and given is not None and wanted != given:
                raise ConfigError(
                    f"tokenizer.{theirs}: {wanted} differs from data.{ours} {given}; they must be "
                    "equal: set both, or leave one out and it follows the other"
                )
            choices = (wanted, given, getattr(card, ours, None), known[theirs].default)
            value = next(choice for choice in choices if choice is not None)
            tokenizer[theirs] = data[ours] = value
        return raw | {"tokenizer": tokenizer, "data": data}

    @classmethod
    def check_places(cls, raw: Mapping[str, Any]) -> None:
        """Check that the tokenizer whose weights to start from is there.

        Raises:
            ConfigError: If it is not, or has no weights.
        """
        if isinstance(source := raw.get("init_from"), str):
            try:
                check_trained(source)
            except SpectokError as error:
                raise ConfigError(f"init_from: {error}") from error


def load_tokenizer_recipe(
    name_or_path: str | os.PathLike[str], overrides: Iterable[Override] = ()
) -> TokenizerRecipe:
    """Read, override and validate the recipe of a tokenizer.

    Args:
        name_or_path: A YAML file, the name of a recipe (``tokenizers/KEY/DATA``, or without its
            first folder), or a registered key.
        overrides: ``"a.b=c"`` with ``c`` in YAML, or pairs of dotted path and value.

    Raises:
        ConfigError: One line per problem, each with its dotted path.
        UnknownNameError: If nothing has that name.
    """
    return load_recipe(name_or_path, overrides, TokenizerRecipe)
