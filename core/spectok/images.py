"""Conversions between uint8 and [-1, 1], image files, and grids of images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from spectok.errors import InputError
from spectok.writing import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image


SMALLEST_SHOWN = 64  # pixels
FARTHEST = 8.0
"""Largest absolute value that is taken for one of an image in [-1, 1], noise and sharp edges
included. Bytes as floats lie beyond; images normalised by another mean and deviation need not."""


def check_values(images: Float[Tensor, "*b c h w"]) -> None:
    """Check that images are finite and not far outside [-1, 1]; waits for their device.

    Nothing is checked where values are not known: on the meta device, and while compiling.

    Raises:
        InputError: If a value is infinite or NaN, or beyond :data:`FARTHEST`.
    """
    if images.is_meta or torch.compiler.is_compiling() or not images.numel():
        return
    least, most = torch.stack(images.detach().aminmax()).tolist()
    if least >= -FARTHEST and most <= FARTHEST:  # False for NaN
        return
    batch = images.detach().reshape(-1, *images.shape[-3:])
    bad = batch.isfinite().flatten(1).all(1).logical_not().nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"image {bad[0]} of the batch ({len(bad)} of {len(batch)}) holds values that are "
            f"infinite or NaN; clean the data"
        )
    raise InputError(
        f"images hold values from {least:.4g} to {most:.4g}, far outside [-1, 1]; convert bytes by "
        f"images / 127.5 - 1"
    )


def to_float(images: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """Return uint8 images as float32 in [-1, 1]: x / 127.5 - 1."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)  # one array, not three


def to_uint8(images: Num[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """Return images in [-1, 1] as uint8, clamped and rounded; the inverse of :func:`to_float`.

    Args:
        images: Values outside [-1, 1] are clamped. uint8 images are returned as they are.
    """
    if images.dtype == torch.uint8:
        return images
    scaled = (images.detach().to(torch.float32) + 1) * 127.5
    return scaled.clamp(0, 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image:
    """Return one image (C, H, W), in [-1, 1] or uint8, as a PIL image.

    Raises:
        InputError: If it is not a single image with 1 or 3 channels.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"image of shape {tuple(image.shape)} is not (1, H, W) or (3, H, W); give one image"
        )
    pixels = to_uint8(image).cpu().permute(1, 2, 0).numpy()  # (h, w, c)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def enlarge(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Repeat the pixels of small images until they are large enough to look at."""
    factor = max(1, SMALLEST_SHOWN // images.shape[-1])
    return torch.nn.functional.interpolate(images, scale_factor=factor)


def on_white(images: Sequence[Float[Tensor, "*b c _ _"]]) -> Float[Tensor, "n *b c h w"]:
    """Stack images of several sizes, those that are smaller at the top left of white.

    Args:
        images: In [-1, 1].
    """
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    stacked = [
        torch.nn.functional.pad(
            image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=1.0
        )
        for image in images
    ]
    return torch.stack(stacked)


def make_grid(images: Tensor, columns: int | None = None, gap: int = 2) -> UInt8[Tensor, "c h w"]:
    """Lay images out row by row on a white background.

    Args:
        images: (B, C, H, W) in [-1, 1] or uint8.
        columns: Images per row. None: as square as possible.
        gap: Pixels between images.

    Raises:
        InputError: If the batch is empty.
    """
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (B, C, H, W), B ≥ 1")
    count, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = -(-count // columns)
    step_y, step_x = height + gap, width + gap
    shape = (channels, rows * step_y - gap, columns * step_x - gap)
    grid = torch.full(shape, 255, dtype=torch.uint8)
    for place, image in enumerate(to_uint8(images).cpu()):
        top, left = place // columns * step_y, place % columns * step_x
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_grid(
    images: Tensor, path: str | os.PathLike[str], columns: int | None = None, gap: int = 2
) -> Path:
    """Save images as one picture and return its path; missing directories are created.

    Args:
        images: (B, C, H, W) in [-1, 1] or uint8.
        path: Its suffix determines the format, such as ``.png``.
        columns: Images per row. None: as square as possible.
        gap: Pixels between images.

    Raises:
        InputError: If the file cannot be written; names it.
    """
    save_picture(to_pil(make_grid(images, columns, gap)), path)
    return Path(path)


def save_picture(picture: Image, path: str | os.PathLike[str]) -> None:
    """Save a picture, whole or not at all; missing directories are created.

    Args:
        picture: The picture.
        path: Its suffix determines the format, such as ``.png``.

    Raises:
        InputError: If the file cannot be written; names it.
    """
    with whole_file(path, InputError) as unfinished:
        picture.save(unfinished)
