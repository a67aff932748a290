"""The recipe of a small CLIP, and the ``text:`` section of a prior's recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from spectok.data.choice import data_override
from spectok.data.data_config import DataConfig
from spectok.errors import ConfigError
from spectok.places import home, is_path, missing
from spectok.reading import read_text
from spectok.recipes.files import RUN_RECIPE, list_recipes, refuse_folder
from spectok.recipes.recipe import Override, Recipe, apply_overrides, read_recipe, resolve_recipe
from spectok.recipes.schema import Registered, Section
from spectok.training.train_config import TrainConfig

WITHOUT = (
    "give a local file (text.pretrained=FILE.safetensors) or folder, or fit a small one: "
    "spectok train clip --data DATA"
)
"""What to do without the text encoder that was given."""

Count = Annotated[int, Field(ge=1)]


class ClipConfig(Section):
    """Sizes of a CLIP: a vision and a text transformer with a common embedding space.

    Args:
        embed_dim: Length of the common vectors, and of the text features.
        patch_size: Side of the vision transformer's patches, in pixels.
        image_layers: Blocks of the vision transformer.
        image_width: Width of the vision transformer.
        text_layers: Blocks of the text transformer.
        text_width: Width of the text transformer.
        head_width: Width of an attention head in both; must divide both widths.
        context_length: Maximum number of tokens of a caption, including begin and end of text.
    """

    embed_dim: Count = 128
    patch_size: Count = 8
    image_layers: Count = 4
    image_width: Count = 128
    text_layers: Count = 4
    text_width: Count = 128
    head_width: Count = 32
    context_length: int = Field(32, ge=3)


class ClipRecipe(Recipe):
    """What ``spectok train clip`` reads.

    Args:
        clip: Size of the model.
        data: Captioned images.
        train: How to train.
    """

    main: ClassVar[str] = "clip"
    folder: ClassVar[str] = "generation"

    clip: ClipConfig = ClipConfig.model_validate({})
    data: Annotated[DataConfig, Registered("dataset")] = DataConfig.model_validate({})
    train: TrainConfig = TrainConfig.model_validate({})

    @classmethod
    def complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Give grey images the three channels that the image transforms of open_clip expect."""
        return raw | {"data": {"channels": 3} | raw["data"]}


class TextConfig(Section):
    """The text encoder that a prior reads captions with.

    Args:
        encoder: Folder of a CLIP or of its run, name of an open_clip model, or recipe of a CLIP,
            which is then trained first, inside the run.
        pretrained: With the name of a model: open_clip's tag for its weights, or a file.
    """

    encoder: str
    pretrained: str | None = None


def load_clip_recipe(
    name: str | None = None, overrides: Iterable[Override] = (), data: str | None = None
) -> ClipRecipe:
    """Read, override and validate the recipe of a CLIP.

    Args:
        name: A YAML file or the name of a recipe. None: the recipe made for the data, if there is
            one, otherwise the defaults.
        overrides: ``"a.b=c"``, or pairs of dotted path and value.
        data: Directory, file, hub id or name of a data set.

    Raises:
        ConfigError: One line per problem, each with its dotted path.
    """
    found = clip_recipe_file(name or f"clip/{data}")
    if name is not None and found is None:
        refuse_folder(name)
        known = ", ".join(recipe for recipe, path in list_recipes().items() if _is_clip(path))
        raise ConfigError(
            f"there is no recipe {name} of a CLIP; choose from {known}, or give a YAML file"
        )
    raw = read_recipe(str(found), ClipRecipe) if found else {}
    own_data = [data_override(data)] if data is not None else []
    return resolve_recipe(apply_overrides(raw, [*own_data, *overrides]), ClipRecipe)


def default_output(name: str | None, recipe: ClipRecipe) -> Path:
    """Return ``runs/clip-<data set>``, or the run whose recipe was given.

    Args:
        name: What was given on the command line.
        recipe: What it resolved to.
    """
    if name is not None and Path(name).name == RUN_RECIPE:
        return Path(name).parent  # a recipe written by a run stands for that run
    own = Path(recipe.data.path).stem if recipe.data.path else recipe.data.name
    return Path("runs", f"clip-{own}")


def clip_recipe_file(name: str) -> Path | None:
    """Return the file of a recipe of a CLIP; None if the name is not one."""
    recipes = list_recipes()
    found = recipes.get(name) or recipes.get(f"{ClipRecipe.folder}/{name}")
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else found
    return path if path is not None and _is_clip(path) else None


def check_encoder(name: str) -> None:
    """Check that a text encoder given as a path is there.

    Args:
        name: Folder of a CLIP, or the name of an open_clip model, none of which has a ``/``.

    Raises:
        ConfigError: If it is a path, and nothing is there.
    """
    if ("/" in name or is_path(name)) and not os.path.lexists(home(name)):
        raise ConfigError(f"text.encoder: {missing(name)}; {WITHOUT}")


def _is_clip(path: Path) -> bool:
    """Return whether a file has the section ``clip:``; assume so if it cannot be read."""
    try:
        return "\nclip:" in f"\n{read_text(path, ConfigError)}"
    except ConfigError:
        return True
