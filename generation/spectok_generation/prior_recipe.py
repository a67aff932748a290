"""The recipe of a prior: tokenizer, images, model and training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from spectok.data.choice import check_places, data_override
from spectok.data.data_config import DataConfig
from spectok.errors import CheckpointError, ConfigError
from spectok.loading import check_trained, model_folder
from spectok.places import home, missing, remark_taken
from spectok.recipes.files import RUN_RECIPE, list_recipes
from spectok.recipes.recipe import (
    Override,
    Recipe,
    apply_overrides,
    of_data,
    read_recipe,
    resolve_recipe,
)
from spectok.recipes.schema import Registered, validate_section
from spectok.trained.names import find_model, is_model
from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe
from spectok.training.train_config import TrainConfig
from spectok_generation.text.clip_recipe import TextConfig, check_encoder, clip_recipe_file


class PriorRecipe(Recipe):
    """What ``spectok train prior`` reads.

    Args:
        prior: ``name`` and constructor options of a registered prior.
        tokenizer: Folder or hub id of a trained tokenizer; or a recipe, whose tokenizer is then
            trained first, inside the run. None: ``tokens`` is given and suffices.
        tokenizer_subfolder: Folder inside the tokenizer's, or inside the hub's repository, that
            holds it. None: the one that ``model_index.json`` says, if it is a pipeline.
        tokens: Folder of tokens written by ``spectok extract``. None: they are extracted from
            ``data`` first, inside the run.
        data: Images whose tokens are learned; ignored if ``tokens`` is given. Size and channels
            follow the tokenizer.
        text: Condition on the captions of the images, read by this text encoder.
        copies: Passes over the images for the extraction of tokens, each with its own
            augmentation. With 1, images are not augmented.
        class_conditional: Condition on the class, if the data has classes and ``text`` is not
            given.
        train: How to train.
    """

    main: ClassVar[str] = "prior"
    folder: ClassVar[str] = "generation"

    prior: Annotated[dict[str, Any], Registered("prior")]
    tokenizer: str | None = None
    tokenizer_subfolder: str | None = None
    tokens: str | None = None
    data: Annotated[DataConfig, Registered("dataset")] = DataConfig.model_validate({})
    text: TextConfig | None = None
    copies: int = Field(1, ge=1)
    class_conditional: bool = True
    train: TrainConfig = TrainConfig.model_validate({})

    @classmethod
    def complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Check that a tokenizer or tokens are given.

        Raises:
            ConfigError: If neither is given, or a folder inside what is no trained tokenizer.
        """
        if raw.get("tokenizer") is None and raw.get("tokens") is None:
            raise ConfigError(
                "tokenizer: missing; give a trained tokenizer's folder or a recipe (--tokenizer), "
                "or extracted tokens (--tokens)"
            )
        inside, tokenizer = raw.get("tokenizer_subfolder"), raw.get("tokenizer")
        if inside is not None and (tokenizer is None or tokenizer_recipe(str(tokenizer))):
            raise ConfigError(
                f"tokenizer_subfolder: {inside} is a folder inside a trained tokenizer's; give "
                f"that with --tokenizer, or leave it out"
            )
        return raw

    @classmethod
    def check_places(cls, raw: Mapping[str, Any]) -> None:
        """Check that tokenizer, tokens and text encoder are there.

        Raises:
            ConfigError: If the tokenizer has no weights, or there is no such text encoder.
            CheckpointError: If the tokenizer or the tokens do not exist.
            DataError: If the images do not exist that the tokenizer is to be trained on.
        """
        tokenizer, tokens, text = (raw.get(name) for name in ("tokenizer", "tokens", "text"))
        if isinstance(tokenizer, str):
            if recipe := name_of_recipe(tokenizer):
                check_places(recipe, (), TokenizerRecipe)
            else:
                check_trained(tokenizer)
        if isinstance(tokens, str) and not os.path.isdir(home(tokens)):
            raise CheckpointError(f"{missing(tokens)}; give a folder written by 'spectok extract'")
        encoder = text.get("encoder") if isinstance(text, Mapping) else None
        if isinstance(encoder, str) and clip_recipe_file(encoder) is None:
            check_encoder(encoder)


def load_prior_recipe(
    name: str, overrides: Iterable[Override] = (), data: str | None = None
) -> PriorRecipe:
    """Read, override and validate the recipe of a prior.

    The default data set is the one that the tokenizer was trained on.

    Args:
        name: A YAML file, the name of a recipe, or a registered prior.
        overrides: ``"a.b=c"``, or pairs of dotted path and value.
        data: Directory, file, hub id or name of a data set.

    Raises:
        ConfigError: One line per problem, each with its dotted path.
        UnknownNameError: If there is no such recipe or prior.
    """
    own_data = [data_override(data)] if data is not None else []
    overrides = [*own_data, *overrides]
    raw = apply_overrides(read_recipe(name, PriorRecipe), overrides)
    section = raw.get("data") or {}
    if "name" not in section and raw.get("tokenizer") is not None and raw.get("tokens") is None:
        raw["data"] = tokenizer_data(str(raw["tokenizer"])) | dict(section)
    return resolve_recipe(raw, PriorRecipe)


def tokenizer_recipe(tokenizer: str) -> TokenizerRecipe | None:
    """Return the recipe that a ``tokenizer:`` entry names; None if it names no recipe."""
    name = name_of_recipe(tokenizer)
    return None if name is None else load_tokenizer_recipe(name)


def name_of_recipe(tokenizer: str) -> str | None:
    """Return a ``tokenizer:`` entry that names a recipe, which is not read; None if it does not."""
    names = list_recipes()
    known = {*names, *(name.removeprefix(f"{TokenizerRecipe.folder}/") for name in names)}
    if is_model(tokenizer, TokenizerRecipe.folder):
        return None
    if tokenizer in known:
        remark_taken(tokenizer, "the recipe of a tokenizer to train first")
        return tokenizer
    is_file = Path(tokenizer).suffix in (".yaml", ".yml") and not os.path.isdir(home(tokenizer))
    return tokenizer if is_file else None


def tokenizer_data(tokenizer: str) -> dict[str, Any]:
    """Return the ``data:`` section that a tokenizer was, or will be, trained with.

    Raises:
        ConfigError: If no recipe lies beside the tokenizer, or it is a registered key, which has no
            weights.
        CheckpointError: If it does not exist.
    """
    recipe = tokenizer_recipe(tokenizer)
    place = Path(model_folder(tokenizer))
    for folder in (place, place.parent):
        if recipe is None and os.path.isfile(folder / RUN_RECIPE):
            recipe = load_tokenizer_recipe(folder / RUN_RECIPE)
    if recipe is None:
        check_trained(tokenizer)
        raise ConfigError(
            f"data: missing, and no {RUN_RECIPE} beside the tokenizer {tokenizer} says what it was "
            f"trained on; give --data"
        )
    return recipe.data.model_dump(mode="json", exclude_unset=True)


def load_data(tokenizer: str, data: str | None, overrides: Iterable[str]) -> DataConfig:
    """Return the ``data:`` section of an extraction, with overrides applied.

    Args:
        tokenizer: A trained tokenizer's folder.
        data: Directory, file, hub id or name of a data set. None: the training data
            of the tokenizer.
        overrides: Settings of the data, such as ``"limit=500"``.
    """
    raw = {"data": tokenizer_data(tokenizer)} if data is None else {}
    own_data = [data_override(data)] if data is not None else []
    raw = apply_overrides(raw, [*own_data, *of_data(overrides)])
    return validate_section(DataConfig, raw["data"], "data")


def held_out(
    prior: str, data: str | None, settings: dict[str, Any], overrides: Iterable[str]
) -> DataConfig:
    """Return the ``data:`` section to compare a prior's images with.

    Args:
        prior: A trained prior's folder, or that of its run.
        data: Directory, file, hub id or name of a data set. None: what the prior was trained on.
        settings: Its size, channels, split and the like.
        overrides: Settings of the data, such as ``"path=DIR"``.

    Raises:
        ConfigError: If no recipe beside the prior says what it was trained on.
    """
    own: Any = (
        data_override(data)[1] if data is not None else _data_of_run(Path(model_folder(prior)))
    )
    raw = apply_overrides({"data": {**own, **settings}}, of_data(overrides))
    return validate_section(DataConfig, raw["data"], "data")


def _data_of_run(prior: Path) -> dict[str, Any]:
    """Return the ``data:`` section of a prior's run, or that of its tokenizer."""
    for folder in (prior, prior.absolute().parent):
        if os.path.isfile(folder / RUN_RECIPE):
            recipe = load_prior_recipe(str(folder / RUN_RECIPE))
            if recipe.tokens is None:
                found = recipe.data.model_dump(mode="json", exclude_defaults=True)
                return {"name": recipe.data.name} | found
            if recipe.tokenizer is not None:
                return tokenizer_data(recipe.tokenizer)
    raise ConfigError(f"no recipe beside {prior} says what images it was trained on; give --data")


def default_output(name: str, recipe: PriorRecipe) -> Path:
    """Return ``runs/<recipe or prior>-<run of the tokenizer>``.

    Args:
        name: What was given on the command line.
        recipe: What it resolved to.
    """
    path = Path(name)
    if path.name == RUN_RECIPE:
        return path.parent  # a recipe written by a run stands for that run
    words = [path.stem] if path.suffix in (".yaml", ".yml") else list(path.parts)
    source = Path(recipe.tokenizer or recipe.tokens or "")
    if find_model(str(source)):
        words += source.parts
    elif not tokenizer_recipe(str(source)):
        words.append((source.parent if source.name == "model" else source).name)
        words += Path(recipe.tokenizer_subfolder or "").parts
    return Path("runs", "-".join(w for w in words if w != PriorRecipe.folder))
