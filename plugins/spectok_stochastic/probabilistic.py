"""Codes drawn by their distance: the quantizer of Hierarchical Quantized Autoencoders."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok.device import send
from spectok.quantizers import broadcast_from_main, clear_moments
from spectok_stochastic.relaxation import SMALLEST_TEMPERATURE, RelaxedQuantizer

RARE = 0.03  # of the most used code's count, below which a code is moved
DISPLACEMENT = 0.01  # standard deviation, per entry, of a moved code from the most used one


class ProbabilisticQuantizer(RelaxedQuantizer):
    """Stochastic quantisation by distance (Williams et al. 2020, HQA).

    A vector z has code e_k with probability q_k = softmax(-|z - e_k|²)_k. Both losses are those of
    the bound on the likelihood, as means over entries of z, the second in nats per entry::

        commitment = commitment_weight  Σ_k q_k |z - e_k|² / D
        kl         = kl_weight          (log K - H(q)) / D

    The first is the distance expected under q, whichever code was drawn. Its gradient reaches all
    codes, in proportion to their probabilities, and the vectors. Training mixes codes by
    Gumbel-softmax, whose temperature falls linearly; eval mode takes the likeliest code, which is
    the nearest.

    Every ``reset_every`` steps, the least used code of each codebook is moved next to the most used
    one, if it was chosen less than 0.03 times as often since the last time.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        commitment_weight: Weight of the expected distance.
        kl_weight: Weight of the divergence from uniform codes.
        initial_temperature: The relaxation's temperature at the start.
        anneal_steps: Steps in which it falls to 0.001.
        reset_every: Optimiser steps between resets.
    """

    reset_counts: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        commitment_weight: Annotated[float, Field(ge=0)] = 1e-3,
        kl_weight: Annotated[float, Field(ge=0)] = 1e-3,
        initial_temperature: Annotated[float, Field(ge=SMALLEST_TEMPERATURE)] = 0.667,
        anneal_steps: Annotated[int, Field(ge=0)] = 50_000,
        reset_every: Annotated[int, Field(ge=1)] = 20,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            init_range=1.0,
        )
        nn.init.normal_(self.codebook)
        self.commitment_weight, self.kl_weight = commitment_weight, kl_weight
        self.initial_temperature, self.anneal_steps = initial_temperature, anneal_steps
        self.reset_every = reset_every
        self.register_buffer("reset_counts", torch.zeros_like(self.frequency))

    @property
    def temperature(self) -> float:
        """Falls linearly."""
        left = 1 - min(1.0, self.step_counter.steps / max(1, self.anneal_steps))
        return SMALLEST_TEMPERATURE + (self.initial_temperature - SMALLEST_TEMPERATURE) * left

    def scores(self, z: Float[Tensor, "g p d"]) -> Float[Tensor, "g p k"]:
        """Return -|z - e_k|² without the term that all codes share."""
        norms = self.codebook.square().sum(-1).unsqueeze(1)  # (G, 1, K)
        return torch.baddbmm(norms, z, self.codebook.transpose(1, 2), beta=-1, alpha=2)

    def weigh(
        self,
        z: Float[Tensor, "b n d"],
        z_q: Float[Tensor, "b n d"],
        entropy: Float[Tensor, ""],
        score: Float[Tensor, ""],
    ) -> dict[str, Tensor]:
        """Return the two latent terms of the bound."""
        expected = z.square().mean() - score / self.dim
        kl = (math.log(self.codebook_size) - entropy) / self.dim
        return {"commitment": self.commitment_weight * expected, "kl": self.kl_weight * kl}

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Count the choices, and reset codes every ``reset_every`` steps."""
        self.reset_counts += counts
        if self.step_counter.steps % self.reset_every == 0:
            self.reset(optimizers)
            self.reset_counts.zero_()

    @torch.no_grad()
    def reset(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Move each codebook's least used code next to its most used one, if it is rare."""
        fewest, least = self.reset_counts.min(-1)
        largest, most = self.reset_counts.max(-1)
        groups = (fewest < RARE * largest).cpu().nonzero().squeeze(-1)
        if not len(groups):
            return
        groups = send(groups, least.device)
        least, most = least[groups], most[groups]
        noise = torch.randn(len(groups), self.dim, generator=self.step_counter.generator())
        placed = self.codebook[groups, most] + DISPLACEMENT * send(noise, self.codebook.device)
        self.codebook[groups, least] = broadcast_from_main(placed)
        shared = (self.frequency[groups, most] + self.frequency[groups, least]) / 2
        self.frequency[groups, least] = self.frequency[groups, most] = shared
        clear_moments(self.codebook, groups * self.codebook_size + least, optimizers)
