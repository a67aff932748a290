"""Images of any size in tiles of one size, which overlap and are blended where they do.

The tokens of an image in tiles are those of each tile, tile by tile in raster order: ``(B, n, T)``
where the tokens of one image of the tile's size are ``(B, T)``. A whole image is one tile.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError, TokenError
from spectok.sizes import ImageSize, as_size, size_of, times

TILES_AT_ONCE = 32
OVERLAP = 4
"""Tiles overlap by this part of their shorter side if nothing else is said."""
SMALL = 512
"""Pixels of a side that a tile may have however small the image is."""


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image are.

    They start every ``tile - overlap`` pixels; the last one ends with the image, so that it may
    overlap more. An image that is smaller than a tile is continued by its mirror image on the right
    and at the bottom.

    Args:
        image_size: Height and width of the image, in pixels.
        tile_size: Height and width of each tile, in pixels.
        overlap: Pixels that neighbouring tiles share at least; fewer than a tile has.

    Raises:
        InputError: If the overlap is not smaller than a tile.
    """

    image_size: tuple[int, int]
    tile_size: tuple[int, int]
    overlap: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < min(self.tile_size):
            raise InputError(
                f"overlap {self.overlap} is not from 0 to {min(self.tile_size) - 1}, which tiles "
                f"of {times(self.tile_size)} pixels need; choose e.g. {min(self.tile_size) // 4}"
            )

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width of what the tiles cover: the image, or more where it is smaller."""
        (height, width), (tall, wide) = self.image_size, self.tile_size
        return max(height, tall), max(width, wide)

    @functools.cached_property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each tile, in raster order."""
        tops, lefts = map(self._starts, self.canvas_size, self.tile_size)
        return list(itertools.product(tops, lefts))

    @property
    def num_tiles(self) -> int:
        """Number n of tiles of an image."""
        step = [side - self.overlap for side in self.tile_size]
        spare = [all_ - side for all_, side in zip(self.canvas_size, self.tile_size)]
        return (1 + -(-spare[0] // step[0])) * (1 + -(-spare[1] // step[1]))

    def _starts(self, length: int, tile: int) -> list[int]:
        step = tile - self.overlap
        return [*range(0, length - tile, step), length - tile]

    def cut(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c th tw"]:
        """Cut images into their tiles.

        Raises:
            InputError: If the images are not of ``image_size``.
        """
        if size_of(images) != self.image_size:
            raise InputError(
                f"images of {times(size_of(images))} pixels are not of "
                f"{times(self.image_size)}, which this tiling is for"
            )
        canvas, (tall, wide) = mirror_to(images, self.canvas_size), self.tile_size
        tiles = [canvas[..., top : top + tall, left : left + wide] for top, left in self.corners]
        return torch.stack(tiles, dim=1)

    def join(self, tiles: Float[Tensor, "b n c th tw"]) -> Float[Tensor, "b c h w"]:
        """Put tiles together, weighted where they overlap by the distance to their edges.

        Raises:
            InputError: If their number or size is not this tiling's.
        """
        (tall, wide), (height, width) = self.tile_size, self.canvas_size
        if tiles.shape[1] != self.num_tiles or size_of(tiles) != self.tile_size:
            raise InputError(
                f"{tiles.shape[1]} tiles of {times(size_of(tiles))} pixels are not the "
                f"{self.num_tiles} of {times(self.tile_size)} of this tiling"
            )
        if self.num_tiles == 1:
            return tiles[:, 0, :, : self.image_size[0], : self.image_size[1]]
        weights = self._ramp(tall, tiles)[:, None] * self._ramp(wide, tiles)
        total = weights.new_zeros(height, width)
        canvas = weights.new_zeros(len(tiles), tiles.shape[2], height, width)
        for (top, left), tile in zip(self.corners, tiles.unbind(1)):
            place = (..., slice(top, top + tall), slice(left, left + wide))
            canvas[place] += weights * tile
            total[place] += weights
        blended = (canvas / total).to(tiles.dtype)
        return blended[..., : self.image_size[0], : self.image_size[1]]

    def _ramp(self, length: int, like: Tensor) -> Float[Tensor, "length"]:
        """Return weights that rise linearly from either edge over the overlap, in float32."""
        place = torch.arange(1, length + 1, device=like.device)
        return torch.minimum(place, place.flip(0)).clamp(max=self.overlap + 1).float()


def mirror_to(images: Float[Tensor, "*b h w"], size: tuple[int, int]) -> Float[Tensor, "*b h2 w2"]:
    """Continue images to a larger size by their mirror image, on the right and at the bottom.

    The last row and column are not repeated, as in torch's ``reflect``; but an image may be
    continued by more than its own size.
    """
    rows, columns = (
        _mirrored(old, new, images.device) for old, new in zip(images.shape[-2:], size)
    )
    return images[..., rows, :][..., columns]


def _mirrored(length: int, longer: int, device: torch.device) -> Int[Tensor, "n"]:
    period = max(1, 2 * (length - 1))
    place = torch.arange(longer, device=device) % period
    return torch.where(place < length, place, period - place)


def plan_tiles(
    tokenizer: Any,
    image_size: ImageSize,
    *,
    tile: ImageSize | None = None,
    overlap: int | None = None,
    pad: bool = True,
) -> Tiling:
    """Return how a tokenizer takes images of some size: as one tile, or as several.

    Args:
        tokenizer: An :class:`~spectok.ImageTokenizer`; one that takes a single size needs tiles of
            that size.
        image_size: Of the images.
        tile: Size of the tiles; None: the whole image, with each side brought to a multiple of
            :attr:`~spectok.ImageTokenizer.size_multiple`.
        overlap: Pixels that neighbouring tiles share; None: a quarter of a tile's shorter side.
        pad: Whether images that do not fit are continued by their mirror image, which is cropped
            after decoding; if not, they are refused.

    Raises:
        InputError: If the tokenizer does not take such images or tiles; says why and what to do.
    """
    size, reason = as_size(image_size), tokenizer.why_fixed_size()
    own = tuple(tokenizer.image_shape[1:])
    step = None if reason else tokenizer.size_multiple
    if step is not None and min(size) < step:
        raise InputError(
            f"images of {times(size)} pixels are smaller than the {step}×{step} that a token of "
            f"this {type(tokenizer).__name__} stands for; enlarge them"
        )
    if tile is not None:
        tile_size = as_size(tile)
        most = max(*own, 2 * max(size), SMALL)
        if max(tile_size) > most:
            raise InputError(
                f"tiles of {times(tile_size)} pixels are far larger than images of {times(size)}; "
                f"take tiles of at most {most} pixels"
            )
    elif step is None or size == own:
        tile_size = size
    else:
        tile_size = (-(-size[0] // step) * step, -(-size[1] // step) * step)
    if tile_size != own:
        tokenizer.check_size(tile_size)
    shares = (min(tile_size) // OVERLAP if tile is not None else 0) if overlap is None else overlap
    tiling = Tiling(size, tile_size, shares)
    if not pad and tiling.canvas_size != size:
        needed = f"a multiple of {step}" if tile is None else f"at least {times(tile_size)}"
        raise InputError(
            f"images of {times(size)} pixels are not {needed} high and wide; crop them, or let "
            "them be padded"
        )
    return tiling


@torch.no_grad()
def encode_tiles(
    tokenizer: Any, images: Float[Tensor, "b c h w"], tiling: Tiling
) -> Int[Tensor, "b n t"]:
    """Return the tokens of each tile of images, in raster order.

    Args:
        tokenizer: An :class:`~spectok.ImageTokenizer` that takes tiles of that size.
        images: In [-1, 1], of the tiling's size.
        tiling: From :func:`plan_tiles`.
    """
    tokenizer = tokenizer.at_size(tiling.tile_size)
    tiles = tiling.cut(images)
    parts = tiles.flatten(0, 1).split(TILES_AT_ONCE)
    indices = torch.cat([tokenizer.encode(part) for part in parts])
    return indices.unflatten(0, tiles.shape[:2])


@torch.no_grad()
def decode_tiles(
    tokenizer: Any,
    indices: Int[Tensor, "b n t"],
    tiling: Tiling,
    num_tokens: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """Decode the tokens of tiles, and blend the tiles where they overlap.

    Args:
        tokenizer: The one that encoded them.
        indices: From :func:`encode_tiles`.
        tiling: The same.
        num_tokens: Use only the first k tokens of each tile; None: all.

    Raises:
        TokenError: If an image has not as many tiles as the tiling, or an index is out of range.
        InputError: If a prefix of that length does not decode.
    """
    if indices.ndim != 3 or indices.shape[1] != tiling.num_tiles:
        raise TokenError(
            f"tokens of shape {tuple(indices.shape)} are not (B, {tiling.num_tiles}, T): T for "
            f"each of {tiling.num_tiles} tiles"
        )
    tokenizer = tokenizer.at_size(tiling.tile_size)
    parts = indices.flatten(0, 1).split(TILES_AT_ONCE)
    tiles = torch.cat([tokenizer.decode(part, num_tokens) for part in parts])
    return tiling.join(tiles.unflatten(0, indices.shape[:2]))
