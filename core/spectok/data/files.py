"""Load single image files, prepared like training data."""

from __future__ import annotations

import os
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from spectok.data.decode import UnreadableImage, open_image
from spectok.data.preprocessing import Filter, Preprocessing
from spectok.errors import DataError, InputError
from spectok.images import to_float


def load_image(
    path: str | os.PathLike[str], image_shape: tuple[int, int, int], filter: str = "bicubic"
) -> Float[Tensor, "c h w"]:
    """Load an image file at the size a tokenizer takes.

    The shorter side is resized (antialiased), then the centre is cropped, as for one's own
    training data.

    Args:
        path: An image file.
        image_shape: (C, H, W) with H = W, such as ``tokenizer.image_shape``.
        filter: Pillow's resampling filter, such as ``tokenizer.resize_filter``.

    Returns:
        The image in [-1, 1].

    Raises:
        DataError: If the file is missing or damaged.
        InputError: If ``image_shape`` is not square.
    """
    channels, height, width = image_shape
    if height != width:
        raise InputError(f"image_shape {image_shape} is not square; give (C, H, W) with H = W")
    try:
        pixels = Preprocessing.resize_and_crop(height, channels, cast(Filter, filter))(
            open_image(path)
        )
    except UnreadableImage as error:
        raise DataError(f"image {path} cannot be read ({error}); give another file") from error
    return to_float(torch.from_numpy(pixels))
