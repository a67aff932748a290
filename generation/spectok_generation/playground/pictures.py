"""Pictures of the playground: uploads that are checked, and what is shown, large enough to see."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from spectok import ImageTokenizer
from spectok.data.decode import UnreadableImage, inspect_image
from spectok.errors import InputError
from spectok.images import to_pil

MAX_BYTES, MAX_PIXELS, MAX_FILES = 20 << 20, 50_000_000, 16
"""Bounds of an upload: of each file, of each image, and of files at once."""
LOUDER = 4
"""Times that a difference is shown stronger than it is, because most are small."""
SHOWN = 256
"""Pixels of the longer side that a small picture is enlarged to, each pixel a square."""


def read_uploads(paths: Sequence[str], tokenizer: ImageTokenizer) -> Float[Tensor, "n c h w"]:
    """Read uploaded files as a tokenizer takes images.

    Args:
        paths: Where the page put them.
        tokenizer: Decides size and channels; images are resized and cropped to its shape.

    Raises:
        InputError: If there are too many, or one is too large or no image; names the file.
    """
    if not paths:
        raise InputError("no file was given; choose an image")
    if len(paths) > MAX_FILES:
        raise InputError(f"{len(paths)} files at once are over {MAX_FILES}; choose fewer")
    return torch.cat([_read(path, tokenizer) for path in paths])


def _read(path: str, tokenizer: ImageTokenizer) -> Float[Tensor, "1 c h w"]:
    name = os.path.basename(path)
    try:
        size = os.path.getsize(path)
        if size > MAX_BYTES:
            raise InputError(
                f"{name} has {size / 2**20:.0f} MiB; at most {MAX_BYTES >> 20} are taken"
            )
        (width, height), *_ = inspect_image(path)
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{name} has {width}×{height} pixels; at most {MAX_PIXELS:,} are taken"
            )
        return tokenizer.processor(path)
    except UnreadableImage as error:
        raise InputError(f"{name} is no image that can be read ({error})") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from error


def show(image: Float[Tensor, "c h w"]) -> Image.Image:
    """Return an image in [-1, 1] as a picture; small ones with their pixels as squares."""
    picture = to_pil(image)
    factor = max(1, SHOWN // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def show_difference(one: Float[Tensor, "c h w"], other: Float[Tensor, "c h w"]) -> Image.Image:
    """Return where two images differ: black where they are equal, :data:`LOUDER` elsewhere."""
    return show((one - other).abs() * LOUDER - 1)


def painted(picture: object, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return which pixels of an image are painted over in a picture of it.

    Args:
        picture: What gradio's editor gives: a mapping with ``layers``, RGBA arrays of one size.
        size: Height and width of the image.

    Raises:
        InputError: If it is no such mapping, or nothing is painted.
    """
    layers = picture.get("layers") if isinstance(picture, dict) else None
    covered = np.zeros(size, dtype=bool)
    for layer in layers or []:
        alpha = Image.fromarray(np.asarray(layer)[..., 3])
        # a pixel counts if anything in it is painted
        reduced = alpha.resize((size[1], size[0]), Image.Resampling.BOX)
        covered |= np.asarray(reduced) > 0
    if not covered.any():
        raise InputError("nothing is painted; paint over what is to be drawn again")
    return covered
