"""Finite scalar quantisation: every dimension is rounded to one of a few values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import InputError
from spectok.quantizers import QuantizerOutput
from spectok_vqtorch.adapter import AdaptedQuantizer, library

FEWEST, MOST = 3, 8  # values per dimension that default_levels chooses from

Levels = list[Annotated[int, Field(ge=FEWEST)]]


class FiniteScalarQuantizer(AdaptedQuantizer):
    """FSQ: Finite Scalar Quantization (Mentzer, Minnen, Agustsson, Tschannen, ICLR 2024).

    A linear map takes a vector to d = ``len(levels)`` dimensions; each is squashed by tanh and
    rounded to one of its ``levels[i]`` values, with a straight-through gradient. The codes are all
    points of that grid: there is nothing to learn, no loss, and no code that can die.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes, the points of the grid. Used only if ``levels`` is not given.
        levels: Values per dimension, each at least 3; the paper advises 5 or more. Their product is
            the vocabulary. By default the fewest numbers from 3 to 8 whose product is
            ``codebook_size``.

    Raises:
        InputError: If ``codebook_size`` is no such product.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        levels: Levels | None = None,
    ):
        grid = list(levels or default_levels(codebook_size))
        super().__init__(
            dim=dim, num_tokens=num_tokens, codebook_size=math.prod(grid), num_levels=1
        )
        self.grid = library().FSQ(grid, dim=dim, return_indices=False)  # without a table of codes

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Squash and round; see :class:`~spectok.Quantizer`."""
        rounded = self.grid.quantize(self.grid.project_in(z))  # with the gradient of the squashed
        indices = self.grid.codes_to_indices(rounded.detach()).long()
        return self.output(rounded, indices.unsqueeze(-1), {})

    def codes(self, indices: Int[Tensor, "b n 1"]) -> Float[Tensor, "b n d"]:
        """Return points of the grid, each dimension in [-1, 1]."""
        return points(self.grid, indices.squeeze(-1))

    def from_code(self, codes: Float[Tensor, "b n d"]) -> Float[Tensor, "b n D"]:
        """Map linearly to D dimensions."""
        return self.grid.project_out(codes)


class ResidualFiniteScalarQuantizer(AdaptedQuantizer):
    """Residual FSQ: each level rounds what the levels before it left, on a finer grid.

    Level i divides the residual by ``levels ** i``, rounds it to the grid, and multiplies back.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per level. Used only if ``levels`` is not given.
        levels: Values per dimension, each at least 3; their product is the vocabulary of one level.
        num_levels: Levels L; an image takes ``N L log2(codebook_size)`` bits.

    Raises:
        InputError: If ``codebook_size`` is no product of numbers from 3 to 8.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        levels: Levels | None = None,
        num_levels: Annotated[int, Field(ge=1, le=1024)] = 2,
    ):
        grid = list(levels or default_levels(codebook_size))
        super().__init__(
            dim=dim, num_tokens=num_tokens, codebook_size=math.prod(grid), num_levels=num_levels
        )
        same = dim == len(grid)
        self.project_in = nn.Identity() if same else nn.Linear(dim, len(grid))
        self.project_out = nn.Identity() if same else nn.Linear(len(grid), dim)
        options = {"preserve_symmetry": True, "bound_hard_clamp": True, "return_indices": False}
        self.grids: Any = nn.ModuleList(library().FSQ(grid, **options) for _ in range(num_levels))

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Squash, then round level by level; see :class:`~spectok.Quantizer`."""
        limit = 1 + 1 / (self.fineness(1) - 1)
        squashed = (self.project_in(z) / limit).tanh() * limit
        residual, indices = squashed.detach(), []
        for i, layer in enumerate(self.grids):
            index = layer.codes_to_indices(layer.quantize(residual * self.fineness(i))).long()
            residual = residual - points(layer, index) / self.fineness(i)
            indices.append(index)
        return self.output(squashed, torch.stack(indices, dim=-1), {})

    def fineness(self, level: int) -> Float[Tensor, "d"]:
        """Return how much finer a level's grid is than the first."""
        return self.grids[0]._levels.float() ** level

    def codes(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the sum of the first l levels' points."""
        layers = zip(indices.unbind(-1), self.grids)
        scaled = [points(layer, k) / self.fineness(i) for i, (k, layer) in enumerate(layers)]
        return torch.stack(scaled).sum(0)

    def from_code(self, codes: Float[Tensor, "b n d"]) -> Float[Tensor, "b n D"]:
        """Map linearly to D dimensions."""
        return self.project_out(codes)


def points(grid: Any, indices: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """Return points of a grid, each dimension in [-1, 1], computed from integers."""
    return grid._indices_to_codes(indices)  # the public form also maps to D dimensions


def default_levels(codebook_size: int) -> tuple[int, ...]:
    """Write a number as a product of the fewest numbers from 3 to 8, as equal as can be.

    512 is 8, 8, 8 and 1,000 is 8, 5, 5, 5.

    Raises:
        InputError: If that cannot be done.
    """
    found = min(_factorisations(codebook_size, MOST), key=lambda f: (len(f), sum(f)), default=None)
    if not found:
        raise InputError(
            f"codebook_size {codebook_size} is no product of numbers from {FEWEST} to {MOST}; give "
            f"levels, whose product is then the vocabulary, e.g. [8, 5, 5, 5] for 1,000"
        )
    return found


def _factorisations(number: int, largest: int) -> Iterator[tuple[int, ...]]:
    if number == 1:
        yield ()
    for factor in range(min(largest, number), FEWEST - 1, -1):
        if number % factor == 0:
            for rest in _factorisations(number // factor, factor):
                yield (factor, *rest)
