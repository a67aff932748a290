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
    BLOCK_BYTES,
    CodebookQuantizer,
    QuantizerOutput,
    draw_per_sample,
    straight_through,
)

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

    Attributes:
        given_seeds: Seeds of the images' noise in the next forward pass. A model with several such
            quantizers draws once per image for all of them: several draws one after the other
            would depend on how the batch is split.
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
        self.given_seeds: list[int] | None = None

    @property
    @abstractmethod
    def temperature(self) -> float:
        """The relaxation's temperature τ at this step."""

    @abstractmethod
    def scores(self, z: Float[Tensor, "g p d"]) -> Float[Tensor, "g p k"]:
        """Return the logarithms of the codes' probabilities, up to a constant per vector."""

    @abstractmethod
    def weigh(
        self,
        z: Float[Tensor, "b n d"],
        z_q: Float[Tensor, "b n d"],
        entropy: Float[Tensor, ""],
        score: Float[Tensor, ""],
    ) -> dict[str, Tensor]:
        """Return the weighted losses.

        Args:
            z: Encoder vectors.
            z_q: Quantised vectors.
            entropy: Mean entropy H(q) of a vector's code, in nats.
            score: Mean over vectors of the expected score Σ_k q_k s_k.
        """

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Mix or choose codes; see :class:`~spectok.Quantizer`."""
        indices = self.search(z)
        codes = self.lookup(indices.unsqueeze(-1))
        seeds = self.draw_seeds(z.shape[0]) if self.training else None
        mixed, entropy, score = self.relax(z, seeds)
        z_q = straight_through(z, codes) if mixed is None else mixed
        means = entropy.mean() / self.num_tokens, score.mean() / self.num_tokens
        losses = self.weigh(z, z_q, *means)
        if self.training:
            self.observe(z.detach(), self.rows(indices))
        return QuantizerOutput(z_q, indices.unsqueeze(-1), losses, self.usage())

    def usage(self) -> dict[str, Tensor]:
        """Return the statistics of the codes, and the temperature.

        A graph that is traced has no temperature: the steps it follows are read from a tensor.
        """
        if torch.compiler.is_compiling():
            return super().usage()
        return super().usage() | {"temperature": self.frequency.new_full((), self.temperature)}

    def draw_seeds(self, batch_size: int) -> list[int]:
        """Draw one seed per image, the same however the batch is split, or use those given."""
        seeds, self.given_seeds = self.given_seeds, None
        return draw_image_seeds(batch_size) if seeds is None else seeds

    def relax(
        self, z: Float[Tensor, "b n d"], seeds: Sequence[int] | None
    ) -> tuple[Tensor | None, Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Return mixed codes, and each image's sums of entropies and of expected scores.

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
        mixed, entropy, score = zip(*parts)
        return None if seeds is None else torch.cat(mixed), torch.cat(entropy), torch.cat(score)

    def block_size(self, device: torch.device) -> int:
        """Return how many images' scores are held at once."""
        budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        return max(1, budget // (4 * self.num_tokens * self.codebook_size))

    def _relax_block(
        self, z: Float[Tensor, "b n d"], seeds: Sequence[int] | None
    ) -> tuple[Tensor | None, Float[Tensor, "b"], Float[Tensor, "b"]]:
        scores = self.scores(self.by_codebook(z))  # (G, B N / G, K)
        log_q = scores.log_softmax(-1)
        negative, expected = (
            rearrange((log_q.exp() * value).sum(-1), "g (b s) -> b (g s)", b=z.shape[0]).sum(1)
            for value in (log_q, scores)
        )
        if seeds is None:
            return None, -negative, expected
        noise = gumbel_noise(seeds, (self.num_tokens, self.codebook_size), z.device)
        weights = torch.softmax((log_q + self.by_codebook(noise)) / self.temperature, dim=-1)
        mixed = rearrange(weights @ self.codebook, "g (b s) d -> b (g s) d", b=z.shape[0])
        return mixed, -negative, expected


def draw_image_seeds(batch_size: int) -> list[int]:
    """Draw one seed per image, the same however the batch is split, in its first draw."""
    return (draw_per_sample(batch_size) * NUM_SEEDS).long().tolist()


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
