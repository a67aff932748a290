"""Levels of tokens predicted at once, each from the levels above (after VAR, Tian et al. 2024).

In VAR, the first level is a single token. Here it is a grid, whose tokens depend on each other; it
is predicted token by token, as without levels, and each level below it in one step. On tokens of
``hrvqvae/mnist`` that takes half a percent more bits than one token after the other
(``benchmarks/orders.py``); with the first level at once too, a prototype took 4 % more.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from spectok import TokenSpec
from spectok.errors import ConfigError
from spectok_generation.priors.grids import nearest_cells

PredictKind = Literal["token", "level"]
TOKEN_BY_TOKEN = {"predict": "token"}
"""The options of a prior that was made before levels could be predicted at once."""


@dataclass(frozen=True)
class LevelPlan:
    """What the input of each place holds, and which inputs it sees.

    Args:
        spec: Layout of the tokens.

    Raises:
        ConfigError: If the tokens are not level after level, or of one level.
    """

    spec: TokenSpec

    def __post_init__(self) -> None:
        if self.spec.num_levels == 1:
            raise ConfigError(
                "prior.predict: level needs tokens of several levels, and these have one; set it "
                "to token"
            )
        if self.spec.order != "level":
            raise ConfigError(
                "prior.predict: level needs tokens in the order of their levels, and here all "
                "levels of a position come before the next position; set it to token"
            )

    @functools.cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First place of each level, and the one after its last."""
        ends = itertools.accumulate(level.num_tokens for level in self.spec.levels)
        return list(itertools.pairwise([0, *ends]))

    @functools.cached_property
    def sources(self) -> tuple[int, ...]:
        """Place whose token is the input of each place; that of place 0 is the start.

        On the first level it is the place before; on each level below, the token of the level above
        that covers the place.
        """
        sources = list(range(-1, self.bounds[0][1] - 1))
        for (coarse, fine), (first, _) in zip(itertools.pairwise(self.spec.levels), self.bounds):
            sources += [first + cell for cell in nearest_cells(coarse, fine)[: fine.num_tokens]]
        return tuple(sources)

    def mask(self, device: torch.device) -> Bool[Tensor, "t t"]:
        """Return which inputs each input sees: its whole level and those above.

        On the first level these are the inputs up to itself.
        """
        level = torch.tensor(self.spec.level_of_place, device=device)
        place = torch.arange(len(level), device=device)
        up_to_itself = (level[:, None] > 0) | (place <= place[:, None])
        return (level <= level[:, None]) & up_to_itself
