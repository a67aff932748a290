"""The common part of quantizers that keep explicit codebooks.

One codebook for all positions, one per position, or one per run of consecutive positions: all
three are a tensor ``(G, K, D)`` searched by one batched product. A subclass decides only how the
codes learn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.distributed import sum_over_ranks
from spectok.errors import InputError
from spectok.outputs import QuantizerOutput
from spectok.quantizer import (
    Quantizer,
    QuantizerLevel,
    codebook_losses,
    perplexity,
    straight_through,
)
from spectok.search import nearest_codes

FREQUENCY_DECAY = 0.99
USED_SHARE = 0.1


class CodebookQuantizer(Quantizer):
    """Nearest-code quantisation with G codebooks of K codes.

    Running code frequencies are kept for every subclass: an average over optimiser steps, with
    decay 0.99, of the share of vectors that chose each code. The metric ``perplexity`` is the
    exponential of their entropy, and ``codebook_usage`` the fraction of codes chosen more often
    than a tenth of the uniform share; both are means over the codebooks.

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
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        if num_codebooks < 1 or num_tokens % num_codebooks:
            raise InputError(
                f"num_codebooks {num_codebooks} does not divide the {num_tokens} tokens; choose a "
                f"divisor, or 1 for one shared codebook"
            )
        self.num_codebooks = num_codebooks
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        codes = torch.empty(num_codebooks, codebook_size, dim).uniform_(-init_range, init_range)
        if learned:
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        uniform = torch.full((num_codebooks, codebook_size), 1 / codebook_size)
        self.register_buffer("frequency", uniform)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pending_counts", torch.zeros_like(uniform), persistent=False)
        self._steps: int | None = None

    frequency: Tensor
    num_steps: Tensor
    pending_counts: Tensor

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
    def usage(self) -> dict[str, Tensor]:
        """Return ``perplexity`` and ``codebook_usage`` of the running frequencies."""
        used = self.frequency * self.codebook_size > USED_SHARE
        return {
            "perplexity": perplexity(self.frequency).mean(),
            "codebook_usage": used.float().mean(),
        }

    # -- statistics and edits --------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "b n d"], rows: Int[Tensor, "b n"]) -> None:
        """Accumulate statistics of one micro-batch; edits wait for :meth:`after_step`."""
        counts = torch.bincount(rows.flatten(), minlength=self.pending_counts.numel())
        self.pending_counts += counts.view_as(self.pending_counts)

    @torch.no_grad()
    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Sum statistics over ranks, update the frequencies, and let the subclass edit codes."""
        if not self.training:
            return
        counts, *others = sum_over_ranks(self.pending_counts, *self.pending())
        share = counts / counts.sum(-1, keepdim=True).clamp_min(1)
        self.frequency.lerp_(share, 1 - FREQUENCY_DECAY)
        self._steps = self.steps + 1
        self.num_steps += 1
        self.edit_codes(counts, others, list(optimizers))
        for pending in (self.pending_counts, *self.pending()):
            pending.zero_()

    def pending(self) -> tuple[Tensor, ...]:
        """Return further float statistics to sum over ranks; cleared after each step."""
        return ()

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Edit codes after an optimiser step, from statistics that are equal on all ranks."""

    @property
    def steps(self) -> int:
        """Optimiser steps taken, read from the buffer only once: no device sync in the step."""
        if self._steps is None:
            self._steps = int(self.num_steps)
        return self._steps

    def step_generator(self) -> torch.Generator:
        """Return a CPU generator in a state that depends only on the step: equal on all ranks."""
        return torch.Generator().manual_seed(0x5EC70C + self.steps)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = None
