"""A codebook on the unit sphere, searched by angle and moved by running means."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from spectok.codebook import CodebookQuantizer
from spectok.distributed import gather_candidates
from spectok.search import nearest_codes


class CosineQuantizer(CodebookQuantizer):
    """Vector quantisation by the angle between vector and code (ViT-VQGAN; FA-VAE, section 3.1.2).

    Codes have length one. A vector chooses the code of the largest cosine; the code then moves
    towards the mean direction of those that chose it, ``(1 - decay)`` of the way, and is brought
    back to length one. The commitment term compares the code with the vector as it is, so that the
    encoder is pulled to the sphere as well.

    With ``revive_below`` above 0, codes that are rarely chosen are set to directions of the batch:
    on the first step all that nothing chose, later those whose running frequency is too low.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        decay: How much of a code stays in each step.
        revive_below: Fraction of the uniform share 1/K under which a code is revived; 0, as in the
            paper, never revives.
        revive_every: Optimiser steps between checks for codes to revive.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        commitment_weight: Annotated[float, Field(ge=0)] = 1.0,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.8,
        revive_below: Annotated[float, Field(ge=0, lt=1)] = 0.0,
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
        self.codebook.copy_(F.normalize(self.codebook, dim=-1))
        self.register_buffer("pending_sums", torch.zeros_like(self.codebook), persistent=False)
        self._directions: list[Tensor] = []

    pending_sums: Tensor

    def search(self, z: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"]:
        """Return the code of the largest cosine: among unit vectors, the nearest one."""
        indices = nearest_codes(self.by_codebook(F.normalize(z, dim=-1)), self.codebook)
        return rearrange(indices, "g (b s) -> b (g s)", b=z.shape[0])

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Add the directions of one micro-batch to the pending sums of their codes."""
        super().observe(z, rows)
        directions = F.normalize(z, dim=-1)
        self.pending_sums.view(-1, self.dim).index_add_(0, rows.flatten(), directions.flatten(0, 1))
        if self.revives_at(self.steps + 1):
            self._directions.append(self.by_codebook(directions))

    def pending(self) -> tuple[Tensor, ...]:
        """Sum the directions over ranks too."""
        return (self.pending_sums,)

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Turn each chosen code towards its mean direction; revive codes that are rarely chosen."""
        chosen = (counts > 0).unsqueeze(-1)
        turned = self.codebook.lerp(F.normalize(statistics[0], dim=-1), 1 - self.decay)
        self.codebook.copy_(torch.where(chosen, F.normalize(turned, dim=-1), self.codebook))
        if self.revives_at(self.steps) and self._directions:
            rare = self.frequency * self.codebook_size < self.revive_below
            dead = counts == 0 if self.steps == 1 else rare
            self.revive(dead, torch.cat(self._directions, dim=1))
        self._directions = []

    def revives_at(self, step: int) -> bool:
        """Return whether codes are revived after an optimiser step, counted from 1."""
        return self.revive_below > 0 and (step == 1 or step % self.revive_every == 0)

    def revive(self, dead: Bool[Tensor, "g k"], directions: Float[Tensor, "g p d"]) -> None:
        """Set codes to random directions of this step.

        Args:
            dead: Codes to set, equal on all ranks.
            directions: Each codebook's unit vectors of the whole step.
        """
        generator = self.step_generator()
        for group, (mask, candidates) in enumerate(zip(dead, directions)):
            rows = mask.nonzero().squeeze(-1)
            if len(rows):
                self.codebook[group, rows] = gather_candidates(candidates, len(rows), generator)
                self.frequency[group, rows] = 1 / self.codebook_size
