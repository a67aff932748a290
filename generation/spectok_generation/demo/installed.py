"""Trained models that are installed, on real photographs: what longer training gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from spectok import list_models, load_tokenizer
from spectok.data.photos import photographs
from spectok.images import to_float
from spectok.metrics import psnr
from spectok.tiling import plan_tiles

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "china", "flower")
SIZE = 192  # pixels


@dataclass(frozen=True)
class OnPhotographs:
    """Photographs through tokenizers that were trained elsewhere, on other images.

    Args:
        originals: The photographs, in [-1, 1].
        reconstructions: Name of the tokenizer -> what it makes of them.
        metrics: Name -> its part of ``metrics.json``: mean PSNR in dB, bits per pixel, and tiles
            per image, which is 1 where it takes images of any size whole.
    """

    originals: Float[Tensor, "n 3 h w"]
    reconstructions: dict[str, Tensor]
    metrics: dict[str, dict[str, Any]]


@torch.no_grad()
def show_photographs(names: Iterable[str]) -> OnPhotographs | None:
    """Reconstruct photographs by those of some tokenizers that are installed.

    Args:
        names: Names of trained tokenizers of colour images.

    Returns:
        What they make of them; None if none of them is installed.
    """
    there = [name for name in names if name in list_models()]
    if not there:
        return None
    originals = torch.stack([_square(photographs()[name]) for name in PHOTOGRAPHS])
    found = OnPhotographs(originals, {}, {})
    for name in there:
        tokenizer = load_tokenizer(name)
        tile = None if tokenizer.why_fixed_size() is None else tokenizer.image_shape[1:]
        made = tokenizer.reconstruct(originals, tile=tile, overlap=0).clamp(-1, 1)
        tiling = plan_tiles(tokenizer, (SIZE, SIZE), tile=tile, overlap=0)
        bits = tiling.num_tiles * tokenizer.token_spec_at(tiling.tile_size).bits_per_image
        found.reconstructions[name] = made
        found.metrics[name] = {
            "psnr": float(psnr(originals, made).mean()),
            "bits_per_pixel": bits / SIZE**2,
            "tiles": tiling.num_tiles,
        }
    return found


def _square(photograph: np.ndarray) -> Float[Tensor, "3 h w"]:
    """Return the largest square of a photograph, from its top if it is upright, resized."""
    image = Image.fromarray(photograph)
    side, left = min(image.size), (image.width - min(image.size)) // 2
    square = image.crop((left, 0, left + side, side))
    pixels = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
