"""Quantizers that choose codes at random in training, by a differentiable relaxation.

E. Jang, S. Gu, B. Poole. *Categorical Reparameterization with Gumbel-Softmax.* ICLR 2017.
C. J. Maddison, A. Mnih, Y. W. Teh. *The Concrete Distribution.* ICLR 2017.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spectok.quantizers import (
    CodebookQuantizer,
    QuantizerOutput,
    draw_per_sample,
    straight_through,
)

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
SMALLEST_TEMPERATURE = 1e-3
NUM_SEEDS = 1 << 24  # as many as the values of a float32 drawn from [0, 1)


class RelaxedQuantizer(CodebookQuantizer):
    """Codes with probabilities: mixed by Gumbel-softmax in training, the likeliest in eval mode.

    With scores s_k of the codes e_k, q_k = softmax(s)_k, Gumbel noise g and temperature τ::

        training   z_q = Σ_k softmax((log q + g) / τ)_k e_k
        eval       z_q = e_k of the largest s_k

    so the gradient of z_q reaches the codes, and through the scores the vector. Each image's noise
    is drawn from its own seed, so images get the same noise however a batch is split over
    micro-batches and processes.

    The gradient needs the scores of all codes. They are computed for a few images at a time, and
    again in the backward pass, which bounds the memory.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        init_range: Codes start uniform in ``[-init_range, init_range]``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: int,
        init_range: float,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            codebook_weight=0.0,
            commitment_weight=0.0,
            learned=True,
            init_range=init_range,
        )

    @property
    @abstractmethod
    def temperature(self) -> float:
        """The relaxation's temperature τ at this step."""

    @abstractmethod
    def scores(self, z: Float[Tensor, "g p d"]) -> Float[Tensor, "g p k"]:
        """Return the logarithms of the codes' probabilities, up to a constant per vector."""

    @abstractmethod
    def weigh(
        self, z: Float[Tensor, "b n d"], z_q: Float[Tensor, "b n d"], entropy: Float[Tensor, ""]
    ) -> dict[str, Tensor]:
        """Return the weighted losses.

        Args:
            z: Encoder vectors.
            z_q: Quantised vectors.
            entropy: Mean entropy H(q) of a vector's code, in nats.
        """

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Mix or choose codes; see :class:`~spectok.Quantizer`."""
        indices = self.search(z)
        codes = self.lookup(indices.unsqueeze(-1))
        mixed, entropy = self.relax(z, self.draw_seeds(z.shape[0]) if self.training else None)
        z_q = straight_through(z, codes) if mixed is None else mixed
        losses = self.weigh(z, z_q, entropy.mean() / self.num_tokens)
        if self.training:
            self.observe(z.detach(), self.rows(indices))
        return QuantizerOutput(z_q, indices.unsqueeze(-1), losses, self.usage())

    def usage(self) -> dict[str, Tensor]:
        """Return the statistics of the codes, and the temperature."""
        return super().usage() | {"temperature": self.frequency.new_full((), self.temperature)}

    def draw_seeds(self, batch_size: int) -> list[int]:
        """Draw one seed per image, the same however the batch is split."""
        return (draw_per_sample(batch_size) * NUM_SEEDS).long().tolist()

    def relax(
        self, z: Float[Tensor, "b n d"], seeds: Sequence[int] | None
    ) -> tuple[Tensor | None, Float[Tensor, "b"]]:
        """Return mixed codes, and the entropy of each image's codes.

        Args:
            z: Encoder vectors.
            seeds: Seed of each image's noise; None mixes nothing.
        """
        size = self.block_size(z.device)
        if z.shape[0] <= size:
            return self._relax_block(z, seeds)
        parts = []
        for start in range(0, z.shape[0], size):
            block = slice(start, start + size)
            arguments = z[block], None if seeds is None else seeds[block]
            parts.append(checkpoint(self._relax_block, *arguments, use_reentrant=False))
        mixed, entropy = zip(*parts)
        return None if seeds is None else torch.cat(mixed), torch.cat(entropy)

    def block_size(self, device: torch.device) -> int:
        """Return how many images' scores are held at once."""
        budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        return max(1, budget // (4 * self.num_tokens * self.codebook_size))

    def _relax_block(
        self, z: Float[Tensor, "b n d"], seeds: Sequence[int] | None
    ) -> tuple[Tensor | None, Float[Tensor, "b"]]:
        log_q = self.scores(self.by_codebook(z)).log_softmax(-1)  # (G, B N / G, K)
        negative = rearrange((log_q.exp() * log_q).sum(-1), "g (b s) -> b (g s)", b=z.shape[0])
        entropy = -negative.sum(1)
        if seeds is None:
            return None, entropy
        noise = gumbel_noise(seeds, (self.num_tokens, self.codebook_size), z.device)
        weights = torch.softmax((log_q + self.by_codebook(noise)) / self.temperature, dim=-1)
        mixed = rearrange(weights @ self.codebook, "g (b s) d -> b (g s) d", b=z.shape[0])
        return mixed, entropy


def gumbel_noise(
    seeds: Sequence[int], shape: tuple[int, int], device: torch.device
) -> Float[Tensor, "b n k"]:
    """Draw standard Gumbel noise for each image from a seed of its own."""
    generator = torch.Generator(device)
    draws = [
        torch.empty(shape, device=device).exponential_(generator=generator.manual_seed(seed))
        for seed in seeds
    ]
    return -torch.stack(draws).log()
