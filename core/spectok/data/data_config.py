"""The ``data:`` section of a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PathString = Annotated[
    str, BeforeValidator(lambda p: os.fspath(p) if hasattr(p, "__fspath__") else p)
]

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's resampling filters."""


class DataConfig(BaseModel):
    """Which images to read, and how to bring them to one shape.

    Args:
        name: A registered data set (``spectok list datasets``), or for one's own data one of
            ``folder``, ``parquet``, ``webdataset`` and ``hub``.
        path: A directory of images, a parquet file or a directory with ``train.parquet`` and
            ``test.parquet``, a tar shard or a pattern such as ``shards/*.tar``, or for ``hub`` an
            id such as ``owner/name``. A preset accepts any of them in place of its hub id.
        split: ``train``, ``test`` or ``validation``; some data sets have more. Presets map these
            to the real names of their splits.
        image_size: Side of the square images, in pixels. None: the preset's own size, and 256 for
            one's own data.
        resize_filter: Pillow's filter with which images of another size are resized. None: the
            preset's own, bicubic for one's own data, and in evaluations that of a tokenizer which
            another library trained.
        channels: 1 for grey, 3 for RGB. None: the preset's own, and 3 for one's own data.
        caption_column: Column with captions. None: ``caption``, ``captions``, ``text``, ``txt`` or
            ``prompt``, whichever exists.
        label_column: Column with class labels. None: the column of type ``ClassLabel``, or
            ``label``, ``labels``, ``cls`` or ``class``.
        labels: False: read no class labels, even if there are some. None: read them if there are.
        image_column: Column with images. None: the column of type ``Image``, or ``image``, ``img``.
        max_value: What is white in grey images of more than 8 bits, such as 4095 for 12 bits in a
            16-bit file, or in images of floating-point numbers, such as 1; if it is below 255, also
            in images of 8 bits, such as 19 in masks of 20 classes. None: 65,535 and 255, and images
            of floating-point numbers are refused.
        limit: Use only the first rows, in the data set's own fixed order.
        horizontal_flip: Training augmentation: mirror each image with probability 1/2.
        max_shift: Training augmentation: move images by up to this many pixels each way; edge
            pixels fill the gap.
        streaming: ``webdataset`` only: read each image from its shard on demand, even if the
            decoded images would fit in memory.
        num_held_out: For one's own data without a test split: how many images form the ``test``
            split. None: a tenth of them, at most 1,000. They are chosen by a hash of their names,
            so adding images moves few of them to the other split.
        skip_unreadable: Leave out images that cannot be read instead of stopping; the data report
            names them either way.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = "digits"
    path: PathString | None = None
    split: str = "train"
    image_size: int | None = Field(None, ge=1)
    resize_filter: Filter | None = None
    channels: Literal[1, 3] | None = None
    caption_column: str | None = None
    label_column: str | None = None
    labels: bool | None = None
    image_column: str | None = None
    max_value: float | None = Field(None, gt=0, allow_inf_nan=False)
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


def kind_of_path(path: str | os.PathLike[str]) -> Literal["folder", "parquet", "webdataset", "hub"]:
    """Return which reader a path needs; an ``owner/name`` that does not exist here is a hub id.

    See :func:`spectok.places.may_be_hub_id`.
    """
    from spectok.data.listing import local_path
    from spectok.places import may_be_hub_id

    text = os.fspath(path)
    local = local_path(text)
    if text.endswith(".tar"):
        return "webdataset"
    if text.endswith(".parquet"):
        return "parquet"
    if local.is_dir():
        return _kind_of_directory(local)
    return "hub" if may_be_hub_id(text) and not os.path.exists(local) else "folder"


def _kind_of_directory(directory: Path) -> Literal["folder", "parquet", "webdataset"]:
    """Return which reader a directory needs: tables first, then images, then shards."""
    from spectok.data.decode import IMAGE_SUFFIXES
    from spectok.data.listing import suffix_of, walk
    from spectok.data.metadata import METADATA

    tables = [*directory.glob("*.parquet"), *directory.glob("data/*.parquet")]
    if any(table.name not in METADATA for table in tables):
        return "parquet"
    found = set()
    for name in walk(directory):
        suffix = suffix_of(name)
        if suffix in IMAGE_SUFFIXES:
            return "folder"
        if name.rpartition("/")[2] not in METADATA:
            found.add(suffix)
    return "parquet" if ".parquet" in found else "webdataset" if ".tar" in found else "folder"
