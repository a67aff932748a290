"""Codes that are transported onto the vectors: VQ-WAE's quantizer (Vuong et al., ICML 2023)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok.quantizers import CodebookQuantizer, QuantizerOutput, straight_through
from spectok_vq.transport import transport_cost


class WassersteinQuantizer(CodebookQuantizer):
    """Nearest codes, trained by the transport from a batch's vectors to weighted codes.

    The codes e_k with learned weights π = softmax(logits) are a discrete distribution. Two losses
    take the place of the codebook and commitment terms, in training::

        transport = transport_weight W(vectors of the batch, Σ_k π_k δ(e_k)) / D
        kl        = kl_weight KL(π || uniform)

    W is the optimal transport cost for squared distances, regularised by entropy, in its dual form
    (see :func:`~spectok_vq.transport.transport_cost`). A code of weight π_k receives vectors of
    that share of the mass however far away it lies, so that every code is drawn to vectors, and
    vectors to every code. Where weights are shared, W is a property of the whole step's batch: of
    all processes, but of each micro-batch by itself.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        weights_per: ``"codebook"``: one distribution π per codebook, over all its vectors of a
            batch. ``"position"``: one per position, over that position's vectors, as the paper's
            sequences of codes have it; the codes are shared all the same.
        transport_weight: Weight of W per entry of a vector.
        kl_weight: Weight of the divergence of π from uniform, in nats.
        epsilon: Entropic regularisation, in units of the mean squared difference between an entry
            of a vector and of a code.
        num_iterations: Sinkhorn iterations per batch.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        weights_per: Literal["codebook", "position"] = "codebook",
        transport_weight: Annotated[float, Field(gt=0)] = 0.1,
        kl_weight: Annotated[float, Field(gt=0)] = 1.0,
        epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        num_iterations: Annotated[int, Field(ge=1)] = 20,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            codebook_weight=0.0,
            commitment_weight=0.0,
            learned=True,
            init_range=1.0,
        )
        nn.init.normal_(self.codebook)
        self.transport_weight, self.kl_weight = transport_weight, kl_weight
        self.epsilon, self.num_iterations = epsilon, num_iterations
        transports = 1 if weights_per == "codebook" else num_tokens // num_codebooks
        self.weight_logits = nn.Parameter(torch.zeros(num_codebooks, transports, codebook_size))

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Take the nearest codes, and in training measure the transport to all of them."""
        indices = self.search(z)
        z_q = straight_through(z, self.lookup(indices.unsqueeze(-1)))
        losses = {}
        if self.training:
            losses = self.transport(z)
            self.observe(z.detach(), self.rows(indices))
        return QuantizerOutput(z_q, indices.unsqueeze(-1), losses, self.usage())

    def transport(self, z: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """Return both losses, means over the transports."""
        log_weights = self.weight_logits.float().log_softmax(-1)
        cost = transport_cost(
            self.by_transport(z),
            self.codebook,
            log_weights,
            epsilon=self.epsilon,
            num_iterations=self.num_iterations,
        )
        kl = math.log(self.codebook_size) + (log_weights.exp() * log_weights).sum(-1)
        return {
            "transport": self.transport_weight * cost.mean() / self.dim,
            "kl": self.kl_weight * kl.mean(),
        }

    def by_transport(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "g s p d"]:
        """Gather the vectors that share one distribution of weights."""
        groups, transports, _ = self.weight_logits.shape
        return rearrange(z, "b (g s r) d -> g s (b r) d", g=groups, s=transports)

    def usage(self) -> dict[str, Tensor]:
        """Return the statistics of the codes, and how many the weights spread over."""
        log_weights = self.weight_logits.detach().float().log_softmax(-1)
        entropy = -(log_weights.exp() * log_weights).sum(-1)
        return super().usage() | {"weight_perplexity": entropy.exp().mean()}
