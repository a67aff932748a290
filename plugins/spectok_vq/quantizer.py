"""Codebooks learned by gradient and by exponential moving averages (van den Oord et al. 2017)."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok.quantizers import CodebookQuantizer, RunningMeans, RunningQuantizer


class GradientQuantizer(CodebookQuantizer):
    """Vector quantisation with codes trained by gradient (van den Oord et al. 2017, Eq. 3).

    The codebook term moves codes towards the vectors that chose them. This is the plain method,
    without revival: codes that nothing chooses get no gradient and stay where they are.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        codebook_weight: Weight of ``|sg[z] - e|^2``.
        commitment_weight: Weight of ``|z - sg[e]|^2``; 0.25 in the paper.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            codebook_weight=codebook_weight,
            commitment_weight=commitment_weight,
            learned=True,
            init_range=1 / max(codebook_size, 1),
        )


class EMAQuantizer(RunningQuantizer):
    """Vector quantisation with codes that are running means (van den Oord et al. 2017, appendix).

    The first step sets every code that nothing chose to a random vector of the batch, which starts
    the codebook on the data. Later, a code whose running frequency falls below ``revive_below`` of
    the uniform share is set to a random vector, and its running count and sum to match, so that the
    next update does not undo the revival.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        decay: Decay of the running counts and sums.
        revive_below: Fraction of the uniform share 1/K below which a code is revived; 0 never
            revives.
        revive_every: Optimiser steps between checks for codes to revive.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        revive_below: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        revive_every: Annotated[int, Field(ge=1)] = 10,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            commitment_weight=commitment_weight,
            revive_below=revive_below,
            revive_every=revive_every,
            starts_on_data=True,
        )
        self.running_means = RunningMeans(self, self.codebook, decay)

    def move_codes(self, counts: Float[Tensor, "g k"], sums: Float[Tensor, "g k d"]) -> None:
        """Move each code that was ever chosen to its running mean."""
        self.running_means.update(counts, sums)
        self.running_means.move(self.codebook)

    def set_codes(self, group: int, rows: Int[Tensor, "r"], vectors: Float[Tensor, "r d"]) -> None:
        """Set revived codes, and their running means with them."""
        super().set_codes(group, rows, vectors)
        self.running_means.restart(group, rows, vectors)
