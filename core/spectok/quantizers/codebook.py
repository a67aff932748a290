"""The common part of quantizers that keep explicit codebooks.

One codebook for all positions, one per position, or one per run of consecutive positions: all
three are a tensor ``(G, K, D)`` searched by one batched product. A subclass decides only how the
codes learn.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.outputs import QuantizerOutput
from spectok.quantizers.contract import QuantizerLevel, codebook_losses, straight_through
from spectok.quantizers.counting import CountingQuantizer
from spectok.quantizers.search import nearest_codes


class CodebookQuantizer(CountingQuantizer):
    """Nearest-code quantisation with G codebooks of K codes.

    Running code frequencies are kept for every subclass; see
    :class:`~spectok.quantizers.CountingQuantizer`.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook.
        num_codebooks: Codebooks G; each serves N / G consecutive positions.
        codebook_weight: Weight of the term that moves the codes.
        commitment_weight: Weight of the term that moves the encoder.
        learned: Whether the codes are a parameter, trained by gradient, or a buffer.
        init_range: Codes start uniform in ``[-init_range, init_range]``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: int,
        codebook_weight: float,
        commitment_weight: float,
        learned: bool,
        init_range: float,
    ):
        if num_codebooks < 1 or num_tokens % num_codebooks:
            raise InputError(
                f"num_codebooks {num_codebooks} does not divide the {num_tokens} tokens; choose a "
                f"divisor, or 1 for one shared codebook"
            )
        super().__init__(
            dim=dim, num_tokens=num_tokens, codebook_size=codebook_size, num_codebooks=num_codebooks
        )
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        codes = torch.empty(num_codebooks, codebook_size, dim).uniform_(-init_range, init_range)
        if learned:
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """One level; ``"position"`` when there is more than one codebook."""
        kind = "shared" if self.num_codebooks == 1 else "position"
        return (QuantizerLevel(self.codebook_size, kind, self.num_codebooks),)

    def by_codebook(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "g p d"]:
        """Gather each codebook's vectors: the batch and the positions it owns."""
        return rearrange(z, "b (g s) d -> g (b s) d", g=self.num_codebooks)

    def search(self, z: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"]:
        """Return the nearest code of each vector in its position's codebook."""
        indices = nearest_codes(self.by_codebook(z), self.codebook)
        return rearrange(indices, "g (b s) -> b (g s)", b=z.shape[0])

    def lookup(self, indices: Int[Tensor, "b n 1"]) -> Float[Tensor, "b n d"]:
        """Return the codes that indices select."""
        return nn.functional.embedding(self.rows(indices.squeeze(-1)), self.codebook.flatten(0, 1))

    def rows(self, indices: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Number each selected code among all G x K."""
        run = self.num_tokens // self.num_codebooks
        owner = torch.arange(indices.shape[1], device=indices.device) // run
        return indices + owner * self.codebook_size

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Search, look up, and compare; see :class:`~spectok.Quantizer`."""
        indices = self.search(z)
        codes = self.lookup(indices.unsqueeze(-1))
        losses = codebook_losses(
            z, codes, codebook_weight=self.codebook_weight, commitment_weight=self.commitment_weight
        )
        if self.training:
            self.observe(z.detach(), self.rows(indices))
        return QuantizerOutput(
            straight_through(z, codes), indices.unsqueeze(-1), losses, self.usage()
        )

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Accumulate statistics of one micro-batch; edits wait for :meth:`after_step`."""
        self.count(rows)
