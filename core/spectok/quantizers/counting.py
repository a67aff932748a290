"""What quantizers count: optimiser steps, and how often each code is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spectok.distributed import sum_over_ranks
from spectok.quantizers.contract import Quantizer, perplexity

FREQUENCY_DECAY = 0.99
USED_SHARE = 0.1


class SteppedQuantizer(Quantizer):
    """Knows how many optimiser steps it has taken, also after loading.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Number of codes in each codebook.

    Attributes:
        step_seed: Seed of :meth:`step_generator` at step 0.
    """

    step_seed: int = 0x5EC70C

    def __init__(self, *, dim: int, num_tokens: int, codebook_size: int):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self._steps: int | None = None

    num_steps: Tensor

    @property
    def steps(self) -> int:
        """Optimiser steps taken, read from the buffer only once: no device sync in the step."""
        if self._steps is None:
            self._steps = int(self.num_steps)
        return self._steps

    def count_step(self) -> None:
        """Count one more optimiser step."""
        self._steps = self.steps + 1
        self.num_steps += 1

    def step_generator(self) -> torch.Generator:
        """Return a CPU generator in a state that depends only on the step: equal on all ranks."""
        return torch.Generator().manual_seed(self.step_seed + self.steps)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = None


class CountingQuantizer(SteppedQuantizer):
    """Keeps running frequencies of the codes of G codebooks with K codes each.

    They are an average over optimiser steps, with decay 0.99, of the share of vectors that chose
    each code. The metric ``perplexity`` is the exponential of their entropy, and ``codebook_usage``
    the fraction of codes chosen more often than a tenth of the uniform share; both are means over
    the codebooks.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook.
        num_codebooks: Codebooks G, numbered one after another: code k of codebook g is row gK + k.
    """

    def __init__(self, *, dim: int, num_tokens: int, codebook_size: int, num_codebooks: int):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        self.num_codebooks = num_codebooks
        uniform = torch.full((num_codebooks, codebook_size), 1 / codebook_size)
        self.register_buffer("frequency", uniform)
        self.register_buffer("pending_counts", torch.zeros_like(uniform), persistent=False)

    frequency: Tensor
    pending_counts: Tensor

    @torch.no_grad()
    def usage(self) -> dict[str, Tensor]:
        """Return ``perplexity`` and ``codebook_usage`` of the running frequencies."""
        used = self.frequency * self.codebook_size > USED_SHARE
        return {
            "perplexity": perplexity(self.frequency).mean(),
            "codebook_usage": used.float().mean(),
        }

    @torch.no_grad()
    def count(self, rows: Int[Tensor, "..."]) -> None:
        """Count the codes that one micro-batch chose, numbered over all codebooks."""
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
        self.count_step()
        self.edit_codes(counts, others, list(optimizers))
        self.forget()

    def skip_step(self) -> None:
        """Forget the micro-batches since the last step; see :class:`~spectok.Quantizer`."""
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Clear what micro-batches added to, at the end of each step."""
        for pending in (self.pending_counts, *self.pending()):
            pending.zero_()

    def pending(self) -> tuple[Tensor, ...]:
        """Return further float statistics to sum over ranks; cleared after each step."""
        return ()

    def edit_codes(
        self, counts: Tensor, statistics: list[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        """Edit codes after an optimiser step, from statistics that are equal on all ranks."""
