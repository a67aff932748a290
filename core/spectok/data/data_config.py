"""The ``data:`` section of a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PathString = Annotated[
    str, BeforeValidator(lambda p: os.fspath(p) if hasattr(p, "__fspath__") else p)
]


class DataConfig(BaseModel):
    """Which images to read, and how to bring them to one shape.

    Args:
        name: A registered data set (``spectok list datasets``), or for one's own data one of
            ``folder``, ``parquet``, ``webdataset``, ``hub``.
        path: A directory of images, a parquet file or a directory with ``train.parquet`` and
            ``test.parquet``, a tar shard or a pattern such as ``shards/*.tar``, or for ``hub`` an
            id such as ``owner/name``. A preset accepts any of them in place of its hub id.
        split: ``train``, ``test`` or ``validation``; some data sets have more. Presets map these
            to the real names of their splits.
        image_size: Side of the square images, in pixels. None: the preset's own size, and 256 for
            one's own data.
        channels: 1 for grey, 3 for RGB. None: the preset's own, and 3 for one's own data.
        caption_column: Column with captions. None: ``caption``, ``captions``, ``text``, ``txt`` or
            ``prompt``, whichever exists.
        label_column: Column with class labels. None: the column of type ``ClassLabel``, or
            ``label``, ``labels``, ``cls`` or ``class``.
        image_column: Column with images. None: the column of type ``Image``, or ``image``, ``img``.
        limit: Use only the first rows, in the data set's own fixed order.
        horizontal_flip: Training augmentation: mirror every second image at random.
        max_shift: Training augmentation: move images by up to so many pixels each way; the border
            is filled by repeating the edge.
        streaming: ``webdataset`` only: read each image from its shard when it is asked for, even
            where the decoded images would fit in memory.
        num_held_out: One's own data without a test split: how many images become the ``test``
            split. None: a tenth of them, at most 1,000. They are chosen by a hash of their names,
            so that adding images moves few of them across.
        skip_unreadable: Leave out images that cannot be read instead of stopping; the data report
            names them either way.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = "digits"
    path: PathString | None = None
    split: str = "train"
    image_size: int | None = Field(None, ge=1)
    channels: Literal[1, 3] | None = None
    caption_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    limit: int | None = Field(None, ge=1)
    horizontal_flip: bool = False
    max_shift: int = Field(0, ge=0)
    streaming: bool = False
    num_held_out: int | None = Field(None, ge=0)
    skip_unreadable: bool = False


def config_for_path(path: str | os.PathLike[str], **options: Any) -> DataConfig:
    """Return the configuration for one's own data, with ``name`` chosen by looking at the path.

    Args:
        path: What a person gives to ``--data``: a directory, parquet file, tar shard or hub id.
        options: Further fields of :class:`DataConfig`.
    """
    return DataConfig(name=kind_of_path(path), path=os.fspath(path), **options)


def _holds_only_shards(directory: Path) -> bool:
    """Return whether a directory has tar files and nothing else that could be images."""
    entries = [e for e in directory.iterdir() if not e.name.startswith(".")]
    return any(e.suffix == ".tar" for e in entries) and not any(
        e.is_dir() or e.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") for e in entries
    )


def kind_of_path(path: str | os.PathLike[str]) -> Literal["folder", "parquet", "webdataset", "hub"]:
    """Return which reader a path needs; ``owner/name`` that does not exist here is a hub id."""
    text = os.fspath(path)
    local = Path(text).expanduser()
    if text.endswith(".tar"):
        return "webdataset"
    if text.endswith(".parquet"):
        return "parquet"
    if local.is_dir():
        if any(local.glob("*.parquet")) or any(local.glob("data/*.parquet")):
            return "parquet"
        return "webdataset" if _holds_only_shards(local) else "folder"
    looks_like_id = (
        text.count("/") == 1 and not text.startswith((".", "/", "~")) and "\\" not in text
    )
    return "hub" if looks_like_id and not local.exists() else "folder"
