"""Codebooks learned by gradient and by exponential moving averages (van den Oord et al. 2017)."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from spectok.codebook import CodebookQuantizer
from spectok.distributed import gather_candidates


class GradientQuantizer(CodebookQuantizer):
    """Vector quantisation with codes trained by gradient (van den Oord et al. 2017, Eq. 3).

    The codebook term moves codes to the vectors that chose them. Codes that nothing chooses get no
    gradient and stay where they are: this is the plain method, without revival.

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
            init_range=1 / codebook_size,
        )


class EMAQuantizer(CodebookQuantizer):
    """Vector quantisation with codes that are running means (van den Oord et al. 2017, appendix).

    On the first step every code that nothing chose is set to a random vector of the batch, which
    starts the codebook on the data. Later, a code whose running frequency falls below
    ``revive_below`` of the uniform share is set to a random vector, and its running count and sum
    with it, so that the next update does not undo the revival.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        decay: Decay of the running counts and sums.
        revive_below: Fraction of the uniform share 1/K under which a code is revived; 0 never
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
            codebook_weight=0.0,
            commitment_weight=commitment_weight,
            learned=False,
            init_range=1.0,
        )
        self.decay, self.revive_below, self.revive_every = decay, revive_below, revive_every
        self.register_buffer("ema_counts", torch.zeros_like(self.frequency))
        self.register_buffer("ema_sums", torch.zeros_like(self.codebook))
        self.register_buffer("pending_sums", torch.zeros_like(self.codebook), persistent=False)
        self._vectors: list[Tensor] = []

    ema_counts: Tensor
    ema_sums: Tensor
    pending_sums: Tensor

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Add one micro-batch to the pending counts and sums."""
        super().observe(z, rows)
        self.pending_sums.view(-1, self.dim).index_add_(0, rows.flatten(), z.flatten(0, 1))
        if self.revives_at(self.steps + 1):
            self._vectors.append(self.by_codebook(z))

    def pending(self) -> tuple[Tensor, ...]:
        """Sum the vectors over ranks too."""
        return (self.pending_sums,)

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Move each chosen code to its running mean; revive codes that nothing chooses."""
        self.ema_counts.lerp_(counts, 1 - self.decay)
        self.ema_sums.lerp_(statistics[0], 1 - self.decay)
        known = (self.ema_counts > 1e-8).unsqueeze(-1)
        means = self.ema_sums / self.ema_counts.clamp_min(1e-8).unsqueeze(-1)
        self.codebook.copy_(torch.where(known, means, self.codebook))
        if self.revives_at(self.steps) and self._vectors:
            rare = self.frequency * self.codebook_size < self.revive_below
            self.revive(counts == 0 if self.steps == 1 else rare, torch.cat(self._vectors, dim=1))
        self._vectors = []

    def revives_at(self, step: int) -> bool:
        """Return whether codes are revived after an optimiser step, counted from 1."""
        return step == 1 or (self.revive_below > 0 and step % self.revive_every == 0)

    def revive(self, dead: Bool[Tensor, "g k"], vectors: Float[Tensor, "g p d"]) -> None:
        """Set codes to random vectors of this step, with the running state of an average code.

        Args:
            dead: Codes to set, equal on all ranks.
            vectors: Each codebook's vectors of the whole step.
        """
        generator = self.step_generator()
        for group, (mask, candidates) in enumerate(zip(dead, vectors)):
            rows = mask.nonzero().squeeze(-1)
            if not len(rows):
                continue
            chosen = gather_candidates(candidates, len(rows), generator)
            count = self.ema_counts[group].sum() / self.codebook_size
            self.codebook[group, rows] = chosen
            self.ema_counts[group, rows] = count
            self.ema_sums[group, rows] = chosen * count
            self.frequency[group, rows] = 1 / self.codebook_size
