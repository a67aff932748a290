"""Load single image files, prepared like training data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from spectok.data.decode import UnreadableImage, open_image, to_channels
from spectok.data.preprocessing import Filter, Preprocessing
from spectok.errors import DataError
from spectok.images import to_float


def load_image(
    path: str | os.PathLike[str], image_shape: tuple[int, int, int], filter: str = "bicubic"
) -> Float[Tensor, "c h w"]:
    """Load an image file at the size a tokenizer takes.

    It is resized (antialiased) until it covers that size, then the centre is cropped, as
    for one's own training data.

    Args:
        path: An image file.
        image_shape: (C, H, W), such as ``tokenizer.image_shape``.
        filter: Pillow's resampling filter, such as ``tokenizer.resize_filter``.

    Returns:
        The image in [-1, 1].

    Raises:
        DataError: If the file is missing or damaged.
    """
    with _readable(path):
        return to_float(torch.from_numpy(fit_image(open_image(path), image_shape, filter)))


def fit_image(
    image: Image.Image, image_shape: tuple[int, int, int], filter: str = "bicubic"
) -> UInt8[np.ndarray, "c h w"]:
    """Bring an image to the size and channels a tokenizer takes; see :func:`load_image`.

    Args:
        image: Of any size and mode.
        image_shape: (C, H, W).
        filter: Pillow's resampling filter.

    Raises:
        UnreadableImage: If its pixels are floating-point, or it is too narrow.
    """
    channels, height, width = image_shape
    if height == width:
        return Preprocessing.resize_and_crop(height, channels, cast(Filter, filter))(image)
    upright = to_channels(image, channels)
    return as_pixels(ImageOps.fit(upright, (width, height), Image.Resampling[filter.upper()]))


def load_original(path: str | os.PathLike[str], channels: int) -> Float[Tensor, "c h w"]:
    """Load an image file at its own size.

    Args:
        path: An image file.
        channels: 1 for grey, 3 for colour.

    Returns:
        The image in [-1, 1].

    Raises:
        DataError: If the file is missing or damaged.
    """
    with _readable(path):
        pixels = as_pixels(to_channels(open_image(path), channels))
    return to_float(torch.from_numpy(pixels))


def as_pixels(image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
    """Return the pixels of a grey or RGB image, channels first."""
    pixels = np.array(image)  # a copy: Pillow's own memory is read-only
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except UnreadableImage as error:
        raise DataError(f"image {path} cannot be read ({error}); give another file") from error
