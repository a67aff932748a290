"""The orders in which training predicts the places of images (RAR, Yu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok import TokenSpec
from spectok.distributed import draw_per_sample
from spectok.errors import ConfigError

OrderKind = Literal["raster", "random"]
RASTER = {"order": "raster", "random_until": 0.5, "raster_from": 0.75}
"""The options of a prior that was made before there were orders."""
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Annealing:
    """How many of the training images have a random order (Yu et al. 2024, section 3.2).

    All in the first part of a run, none in its last, and a share that falls linearly in between.
    The paper's are epochs 200 and 300 of 400: fractions 0.5 and 0.75.

    Args:
        random_until: Fraction of the run up to which all images have one.
        raster_from: Fraction of the run from which none has.

    Raises:
        ConfigError: If the second comes before the first.
    """

    random_until: float
    raster_from: float

    def __post_init__(self) -> None:
        if not 0 <= self.random_until <= self.raster_from <= 1:
            raise ConfigError(
                f"prior.random_until {self.random_until} and prior.raster_from {self.raster_from} "
                f"are fractions of a run, of which the first is not after the second; set e.g. 0.5 "
                f"and 0.75"
            )

    @classmethod
    def of(cls, order: OrderKind, random_until: float, raster_from: float) -> Annealing | None:
        """Return what the options of a prior say; None if all images have raster order."""
        annealing = cls(random_until, raster_from)
        return annealing if order == "random" else None

    def share(self, progress: float) -> float:
        """Return the share of images in random order.

        Args:
            progress: Fraction of the run that is over.
        """
        if progress < self.random_until:
            return 1.0
        if progress >= self.raster_from:
            return 0.0
        return (self.raster_from - progress) / (self.raster_from - self.random_until)


def draw_orders(spec: TokenSpec, batch_size: int, share: float) -> Int[Tensor, "b t"]:
    """Draw in which order a step of training predicts the places of each image, on the CPU.

    Levels are permuted only where every place still follows those that say what its index means.
    With ``order="level"`` the places of each level are permuted among themselves, so that a level
    follows all levels above it. With ``order="position"`` whole positions are permuted, and the
    levels of a position stay together in their order.

    Args:
        spec: Layout of the tokens.
        batch_size: Images on this rank.
        share: Probability that an image has a random order; the others have that of the spec.

    Returns:
        Numbers of places: column i says which place is the i-th to be predicted.
    """
    num_tokens = spec.num_tokens
    numbers = draw_per_sample(batch_size * (1 + num_tokens)).view(batch_size, -1)
    is_random, numbers = numbers[:, :1] < share, numbers[:, 1:]
    if spec.order == "position":
        cells = numbers[:, :: spec.num_levels].argsort(dim=1, stable=True)
        levels = torch.arange(spec.num_levels)
        drawn = (cells[:, :, None] * spec.num_levels + levels).flatten(1)
    else:
        parts, first = [], 0
        for level in spec.levels:
            part = numbers[:, first : first + level.num_tokens]
            parts.append(part.argsort(dim=1, stable=True) + first)
            first += level.num_tokens
        drawn = torch.cat(parts, dim=1)
    return torch.where(is_random, drawn, torch.arange(num_tokens))


def in_order(vectors: Float[Tensor, "b n d"], order: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Return some of each image's vectors, in its own order."""
    return torch.take_along_dim(vectors, order[:, :, None], dim=1)
