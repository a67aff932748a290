"""SQ-VAE's quantizer, with a learned variance, and DALL-E's, with learned logits."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok_stochastic.relaxation import SMALLEST_TEMPERATURE, RelaxedQuantizer

VARIANCE_PER_DIMENSION = 0.25


class LogVariance(nn.Module):
    """The logarithm of a learned variance, optionally with its own learning rate.

    Args:
        variance: Variance at the start.
        learning_rate: Peak learning rate; None for that of the other parameters.
    """

    def __init__(self, variance: float, learning_rate: float | None):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(math.log(variance)))
        if learning_rate is not None:
            self.own_learning_rate = learning_rate

    def forward(self) -> Float[Tensor, ""]:
        """Return the variance."""
        return self.value.float().exp()


class StochasticQuantizer(RelaxedQuantizer):
    """Stochastic quantisation with a learned variance: SQ-VAE, Gaussian type I (Takida 2022).

    A vector z is modelled as its code plus Gaussian noise, of a variance σ² that all vectors share.
    Its code is then e_k with probability q_k = softmax(-|z - e_k|² / 2σ²)_k, and the bound on the
    likelihood gives the losses, here as means over entries of z::

        distance = latent_weight  |z - z_q|² / 2σ²
        entropy  = latent_weight  -H(q)

    While the decoder is poor, σ² stays large and codes are chosen at random. As it improves, σ²
    falls, and the nearest code is chosen ever more surely; eval mode always takes it.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        latent_weight: Weight of both losses. With a mean squared error as reconstruction loss, use
            about twice its expected value. In ``sqvae`` the likelihood has the same weight, which
            then only scales the whole objective.
        initial_variance: σ² at the start; None for a quarter of ``dim``.
        variance_learning_rate: Peak learning rate of log σ²; None for that of the other parameters,
            as in the released code.
        temperature_decay: The relaxation's temperature is exp(-temperature_decay · steps).
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        latent_weight: Annotated[float, Field(gt=0)] = 0.02,
        initial_variance: Annotated[float, Field(gt=0)] | None = None,
        variance_learning_rate: Annotated[float, Field(gt=0)] | None = 0.03,
        temperature_decay: Annotated[float, Field(ge=0)] = 1e-5,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            init_range=1.0,
        )
        nn.init.normal_(self.codebook)
        self.latent_weight, self.temperature_decay = latent_weight, temperature_decay
        start = VARIANCE_PER_DIMENSION * dim if initial_variance is None else initial_variance
        self.variance = LogVariance(start, variance_learning_rate)

    @property
    def temperature(self) -> float:
        """Falls exponentially from 1."""
        steps = self.step_counter.steps
        return max(SMALLEST_TEMPERATURE, math.exp(-self.temperature_decay * steps))

    def scores(self, z: Float[Tensor, "g p d"]) -> Float[Tensor, "g p k"]:
        """Return -|z - e_k|² / 2σ² without the term that all codes share."""
        norms = self.codebook.square().sum(-1).unsqueeze(1)  # (G, 1, K)
        products = torch.baddbmm(norms, z, self.codebook.transpose(1, 2), beta=-0.5)
        return products / self.variance()

    def weigh(
        self,
        z: Float[Tensor, "b n d"],
        z_q: Float[Tensor, "b n d"],
        entropy: Float[Tensor, ""],
        score: Float[Tensor, ""],
    ) -> dict[str, Tensor]:
        """Return the two latent terms of the bound."""
        distance = (z - z_q).square().mean() / (2 * self.variance())
        return {
            "distance": self.latent_weight * distance,
            "entropy": -self.latent_weight * entropy / self.dim,
        }

    def usage(self) -> dict[str, Tensor]:
        """Return the statistics of the codes, and the variance."""
        return super().usage() | {"variance": self.variance().detach()}


class GumbelQuantizer(RelaxedQuantizer):
    """Categorical codes of learned logits, relaxed by Gumbel-softmax (Ramesh et al. 2021, 2.1).

    A linear map takes each vector to the logits of K codes: the last layer of DALL-E's encoder.
    The divergence of these probabilities q from the uniform prior of DALL-E's first stage is
    ``kl = kl_weight (log K - H(q))``, a mean over tokens, in nats.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        kl_weight: Weight of the divergence.
        kl_warmup_steps: Optimiser steps over which the weight rises from 0, along half a cosine.
        final_temperature: The relaxation's temperature falls from 1 to this; 1/16 in the paper.
        anneal_steps: Optimiser steps of that fall, along half a cosine; 150,000 in the paper.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        kl_weight: Annotated[float, Field(ge=0)] = 5e-4,
        kl_warmup_steps: Annotated[int, Field(ge=0)] = 5000,
        final_temperature: Annotated[float, Field(ge=SMALLEST_TEMPERATURE, le=1)] = 1 / 16,
        anneal_steps: Annotated[int, Field(ge=0)] = 150_000,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            init_range=1.0,
        )
        self.kl_weight, self.kl_warmup_steps = kl_weight, kl_warmup_steps
        self.final_temperature, self.anneal_steps = final_temperature, anneal_steps
        self.to_logits = nn.Parameter(torch.empty_like(self.codebook))
        nn.init.uniform_(self.to_logits, -(dim**-0.5), dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_codebooks, 1, codebook_size))

    @property
    def temperature(self) -> float:
        """Falls along half a cosine."""
        return self.final_temperature + (1 - self.final_temperature) * (
            1 - half_cosine(self.step_counter.steps, self.anneal_steps)
        )

    def scores(self, z: Float[Tensor, "g p d"]) -> Float[Tensor, "g p k"]:
        """Return the logits."""
        return torch.baddbmm(self.bias, z, self.to_logits.transpose(1, 2))

    @torch.no_grad()
    def search(self, z: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"]:
        """Return the code of the largest logit."""
        found = [
            rearrange(
                self.scores(self.by_codebook(block)).argmax(-1), "g (b s) -> b (g s)", b=len(block)
            )
            for block in z.split(self.block_size(z.device))
        ]
        return torch.cat(found)

    def weigh(
        self,
        z: Float[Tensor, "b n d"],
        z_q: Float[Tensor, "b n d"],
        entropy: Float[Tensor, ""],
        score: Float[Tensor, ""],
    ) -> dict[str, Tensor]:
        """Return the divergence from uniform codes."""
        weight = self.kl_weight * half_cosine(self.step_counter.steps, self.kl_warmup_steps)
        return {"kl": weight * (math.log(self.codebook_size) - entropy)}


def half_cosine(step: int, steps: int) -> float:
    """Return a value that rises from 0 to 1 along half a cosine, at one of so many steps."""
    return 1.0 if step >= steps else 0.5 * (1 - math.cos(math.pi * step / steps))
