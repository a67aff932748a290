"""The base of quantizers that keep explicit codebooks.

One codebook for all positions, one per position, or one per run of consecutive positions: all
three are a tensor ``(G, K, D)`` searched by one batched product. A subclass decides only how the
codes learn.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.outputs import QuantizerOutput
from spectok.quantizers.contract import Quantizer, QuantizerLevel
from spectok.quantizers.losses import codebook_losses, straight_through
from spectok.quantizers.search import nearest_codes
from spectok.quantizers.statistics import CodeCounts, StepCounter
from spectok.sizes import scaled


class CodebookQuantizer(Quantizer):
    """Nearest-code quantisation with G codebooks of K codes.

    A subclass that edits codes outside autograd does so in :meth:`edit_codes`. After each optimiser
    step, in this order: the statistics of all micro-batches are summed over ranks, the running
    frequencies updated, the step counted, :meth:`edit_codes` called, and the statistics cleared.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook.
        num_codebooks: Codebooks G, each for an equal run of consecutive vectors of an image.
        codebook_weight: Weight of the term that moves the codes.
        commitment_weight: Weight of the term that moves the encoder.
        learned: Whether the codes are a parameter, trained by gradient, or a buffer.
        init_range: Codes start uniform in ``[-init_range, init_range]``.
        num_vectors: Vectors per image that the codebooks are searched for, where that is not
            ``num_tokens``: a residual quantizer searches once per token and level.

    Attributes:
        step_counter: The optimiser steps taken; see :class:`~spectok.quantizers.StepCounter`.
        code_counts: How often codes are chosen; see :class:`~spectok.quantizers.CodeCounts`.
    """

    frequency: Tensor
    pending_counts: Tensor
    num_steps: Tensor

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
        num_vectors: int | None = None,
    ):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        self.num_vectors = num_tokens if num_vectors is None else num_vectors
        if num_codebooks < 1 or self.num_vectors % num_codebooks:
            raise InputError(
                f"num_codebooks {num_codebooks} does not divide the {self.num_vectors} tokens; "
                f"choose a divisor, or 1 for one shared codebook"
            )
        self.num_codebooks = num_codebooks
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.step_counter = StepCounter(self)
        self.code_counts = CodeCounts(self, (num_codebooks, codebook_size))
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

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The codebooks."""
        return (self.codebook,)

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Take another number of vectors per image; see :class:`~spectok.Quantizer`."""
        super().rescale(rows, columns)
        self.num_vectors = scaled(self.num_vectors, rows * columns)

    # -- quantising ------------------------------------------------------------------------------

    def by_codebook(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "g p d"]:
        """Gather each codebook's vectors: those of its run of positions in the whole batch."""
        return rearrange(z, "b (g s) d -> g (b s) d", g=self.num_codebooks)

    def search(self, z: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"]:
        """Return the nearest code of each vector in its position's codebook."""
        indices = nearest_codes(self.by_codebook(z), self.codebook)
        return rearrange(indices, "g (b s) -> b (g s)", b=z.shape[0])

    def lookup(self, indices: Int[Tensor, "b n 1"]) -> Float[Tensor, "b n d"]:
        """Return the codes that indices select."""
        return nn.functional.embedding(self.rows(indices.squeeze(-1)), self.codebook.flatten(0, 1))

    def rows(self, indices: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Number each selected code among all G x K: code k of codebook g is row g K + k."""
        run = self.num_vectors // self.num_codebooks
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

    # -- statistics ------------------------------------------------------------------------------

    def usage(self) -> dict[str, Tensor]:
        """Return the metrics: ``perplexity`` and ``codebook_usage`` of the running frequencies."""
        return self.code_counts.usage()

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Gather statistics of one micro-batch; codes are edited later, in :meth:`edit_codes`."""
        self.code_counts.count(rows)

    def pending(self) -> tuple[Tensor, ...]:
        """Return further float statistics to sum over ranks; they are cleared after each step."""
        return ()

    @torch.no_grad()
    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Sum statistics over ranks, update the frequencies, and let the subclass edit codes."""
        if not self.training:
            return
        counts, *others = self.code_counts.update(*self.pending())
        self.step_counter.advance()
        self.edit_codes(counts, others, list(optimizers))
        self.forget()

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Edit codes after an optimiser step, from statistics that are equal on all ranks.

        Args:
            counts: How often each code was chosen in this step, ``(G, K)``.
            statistics: The sums over ranks of :meth:`pending`.
            optimizers: Those whose moments of replaced codes are to be cleared, with
                :func:`~spectok.quantizers.clear_moments`.
        """

    def skip_step(self) -> None:
        """Forget the micro-batches since the last step; see :class:`~spectok.Quantizer`."""
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Clear what micro-batches added to, at the end of each step."""
        self.code_counts.forget()
        for pending in self.pending():
            pending.zero_()
