"""The images of a data set at their own sizes, without resizing or cropping."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from spectok.data.data_config import DataConfig
from spectok.data.decode import UnreadableImage, inspect_image, open_image, to_channels
from spectok.data.files import as_pixels
from spectok.data.rows import Rows
from spectok.data.splits import hold_out
from spectok.errors import ConfigError, DataError, one_line
from spectok.images import to_float
from spectok.plugins.registry import get_dataset


class OriginalImages(Dataset[dict[str, Any]]):
    """Images of any sizes, read one by one.

    An item is ``{"images": float32 (C, H, W) in [-1, 1], "index": int}``; H and W are those of the
    image itself, upright.

    Args:
        rows: The images, not yet decoded.
        channels: 1 for grey, 3 for colour.
        max_value: What is white; see :class:`spectok.data.Preprocessing`.
        name: What messages call the data.

    Attributes:
        fingerprint: Hash of the pixels, computed while they are read once.

    Raises:
        DataError: If there is no image, or one cannot be read.
    """

    def __init__(
        self, rows: Rows, channels: int, max_value: float | None = None, name: str = "images"
    ):
        self._rows, self._channels, self._max_value = rows, channels, max_value
        if not len(rows) or rows.problems:
            first = f", such as {rows.problems[0].name}" if rows.problems else ""
            raise DataError(f"data {name} has no image, or some that cannot be read{first}")
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(rows)):
            pixels = self._read(index)
            digest.update(json.dumps(pixels.shape).encode())
            digest.update(np.ascontiguousarray(pixels).data)
        self.fingerprint = digest.hexdigest()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything that decides the pixels, ready for JSON."""
        scale = {} if self._max_value is None else {"max_value": self._max_value}
        return {"steps": [], "filter": None, "channels": self._channels, **scale}

    def name_of(self, index: int) -> str:
        """Return the file name of an image, or its row in the data."""
        return self._rows.name(index)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} images")
        return {"images": to_float(torch.from_numpy(self._read(index))), "index": index}

    def _read(self, index: int) -> np.ndarray:
        try:
            reference = self._rows.images[index]
            inspect_image(reference)  # finds files that are cut short
            return as_pixels(to_channels(open_image(reference), self._channels, self._max_value))
        except UnreadableImage as error:
            name = one_line(self.name_of(index))
            raise DataError(
                f"image {name} cannot be read ({error}); repair or remove it"
            ) from error


def build_originals(config: DataConfig, channels: int) -> OriginalImages:
    """Return the images that a ``data:`` section describes, at their own sizes.

    Args:
        config: The section; what it says about the size of images is ignored.
        channels: 1 for grey, 3 for colour.

    Raises:
        UnknownNameError: If no data set of that name is registered.
        ConfigError: If the data are streamed.
        DataError: If images are missing or damaged.
    """
    if config.streaming:
        raise ConfigError("data.streaming cannot serve images at their own sizes; leave it out")
    rows = get_dataset(config.name).originals(config)
    rows = rows if rows.owns_split else hold_out(rows, config)
    if config.limit is not None and config.limit < len(rows):
        rows = rows.select(range(config.limit))
    return OriginalImages(rows, channels, config.max_value, f"{config.name}/{config.split}")
