"""Residual quantisation: a vector as a sum of codes, each nearest to what the others left."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok.quantizers import (
    QuantizerLevel,
    QuantizerOutput,
    RunningMeans,
    RunningQuantizer,
    nearest_codes,
    straight_through,
)


class ResidualQuantizer(RunningQuantizer):
    """RQ (Lee, Kim, Kim, Cho, Han, CVPR 2022, section 3.1).

    With r_0 = z, depth d picks the code k_d nearest to r_{d-1} and leaves r_d = r_{d-1} - e(k_d).
    The partial sums ẑ_d = e(k_1) + … + e(k_d) approach z, and the last one is the result. Codes are
    running means of the residuals that chose them, at every depth that uses their codebook; the
    encoder is committed to every partial sum:

        commitment = commitment_weight mean_d |z - sg[ẑ_d]|²

    With ``num_levels`` codebooks, one per depth, this is the residual quantizer of SoundStream
    (Zeghidour et al. 2021, Algorithm 1).

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_levels: Depth: codes per vector; 4 in most of the paper.
        shared_codebook: Whether all depths share one codebook, as in the paper.
        commitment_weight: Weight of the commitment; 0.25 in the released code.
        decay: Decay of the running counts and sums; 0.99 in the released code.
        revive_below: Fraction of the uniform share 1/K below which a code is set to a random
            residual; 0 never revives.
        revive_every: Optimiser steps between checks for codes to revive.
    """

    decodes_first_levels = True

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_levels: Annotated[int, Field(ge=1, le=1024)] = 4,
        shared_codebook: bool = True,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        revive_below: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        revive_every: Annotated[int, Field(ge=1)] = 10,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=1 if shared_codebook else num_levels,
            commitment_weight=commitment_weight,
            revive_below=revive_below,
            revive_every=revive_every,
            starts_on_data=True,
            num_vectors=num_tokens * num_levels,  # the residuals of all depths, one after another
        )
        self.num_levels = num_levels
        self.running_means = RunningMeans(self, self.codebook, decay)

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """One level per depth."""
        return (QuantizerLevel(self.codebook_size),) * self.num_levels

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The codebook of each depth."""
        return tuple(self.codebook[self.owner(level)][None] for level in range(self.num_levels))

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Approach each vector depth by depth; see :class:`~spectok.Quantizer`."""
        residual, total = z.detach(), torch.zeros(z.shape, device=z.device)
        seen, indices, errors, metrics = [], [], [], self.usage()
        for level in range(self.num_levels):
            codebook = self.codebook[self.owner(level)]
            index = nearest_codes(residual.flatten(0, 1)[None], codebook[None]).view(z.shape[:2])
            code = F.embedding(index, codebook)
            seen.append(residual)
            indices.append(index)
            residual, total = residual - code, total + code
            errors.append((z - total).square().mean())
            metrics[f"residual_level{level}"] = residual.square().mean()
        stacked = torch.stack(indices, dim=-1)
        if self.training:
            by_depth = stacked.transpose(1, 2).flatten(1)  # (B, L N)
            self.observe(torch.cat(seen, dim=1), self.rows(by_depth))
        losses = {"commitment": self.commitment_weight * torch.stack(errors).mean()}
        return QuantizerOutput(straight_through(z, total), stacked, losses, metrics)

    def lookup(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the partial sums of the first l depths."""
        total = torch.zeros((), device=indices.device)
        for level, index in enumerate(indices.unbind(-1)):
            total = total + F.embedding(index, self.codebook[self.owner(level)])
        return total

    def owner(self, level: int) -> int:
        """Return which codebook a depth uses."""
        return level if self.num_codebooks > 1 else 0

    def move_codes(self, counts: Float[Tensor, "g k"], sums: Float[Tensor, "g k d"]) -> None:
        """Move each code that was ever chosen to its running mean."""
        self.running_means.update(counts, sums)
        self.running_means.move(self.codebook)

    def set_codes(self, group: int, rows: Int[Tensor, "r"], vectors: Float[Tensor, "r d"]) -> None:
        """Set revived codes, and their running means with them."""
        super().set_codes(group, rows, vectors)
        self.running_means.restart(group, rows, vectors)
