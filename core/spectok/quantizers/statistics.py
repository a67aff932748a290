"""What quantizers keep track of: optimiser steps, how often codes are chosen, running means.

Each is an object that a quantizer, its owner, creates and holds. It keeps its tensors as buffers of
the owner, under names that are part of the format of saved models: ``quantizer.frequency``,
whichever object does the counting. It reads them from the owner at each use, because ``.to()`` and
loading may put another tensor in a buffer's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.distributed import sum_over_ranks

FREQUENCY_DECAY = 0.99
USED_SHARE = 0.1
FEWEST_MEMBERS = 1e-8  # running count below which a code has no mean


class StepCounter:
    """Counts the optimiser steps that a quantizer has taken; a loaded one goes on counting.

    Not a module, and the count is a buffer ``num_steps`` of the owner: see the top of this module.

    Args:
        owner: The quantizer.
        seed: Seed of :meth:`generator` at step 0.
    """

    def __init__(self, owner: nn.Module, seed: int = 0x5EC70C):
        self.owner, self.seed = owner, seed
        self._read: Tensor | None = None  # the buffer that self._steps was read from
        self._steps = 0
        owner.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        owner.register_load_state_dict_pre_hook(self._forget)

    @property
    def steps(self) -> int:
        """Steps taken, read from the buffer only once: no device sync in the step."""
        buffer = self.owner.get_buffer("num_steps")
        if self._read is not buffer:
            self._read, self._steps = buffer, int(buffer)
        return self._steps

    def advance(self) -> None:
        """Count one more step."""
        self._steps = self.steps + 1
        self.owner.get_buffer("num_steps").add_(1)

    def generator(self) -> torch.Generator:
        """Return a CPU generator in a state that depends only on the step: equal on all ranks."""
        return torch.Generator().manual_seed(self.seed + self.steps)

    def _forget(self, *_: Any) -> None:
        """Read the buffer again after weights are loaded into it."""
        self._read = None


class CodeCounts:
    """Counts how often each code is chosen, and keeps running frequencies.

    The frequencies are an average over optimiser steps, with decay 0.99, of the share of a
    codebook's vectors that chose each code. They start uniform.

    Not a module, and both tensors are buffers of the owner, ``frequency`` and ``pending_counts``:
    see the top of this module. Only the former is saved.

    Args:
        owner: The quantizer.
        shape: ``(G, K)`` for G codebooks of K codes, or ``(K,)``. Rows number the codes of all
            codebooks: code k of codebook g is row g K + k.
    """

    def __init__(self, owner: nn.Module, shape: Sequence[int]):
        self.owner = owner
        uniform = torch.full(tuple(shape), 1 / shape[-1])
        owner.register_buffer("frequency", uniform)
        owner.register_buffer("pending_counts", torch.zeros_like(uniform), persistent=False)

    @property
    def frequency(self) -> Float[Tensor, "*g k"]:
        """Running frequencies."""
        return self.owner.get_buffer("frequency")

    @property
    def pending(self) -> Float[Tensor, "*g k"]:
        """Counts of this rank since the last step."""
        return self.owner.get_buffer("pending_counts")

    @torch.no_grad()
    def count(self, rows: Int[Tensor, "..."]) -> None:
        """Count the codes that one micro-batch chose, numbered by row."""
        counts = count_rows(rows.flatten(), self.pending.numel())
        self.pending.add_(counts.view_as(self.pending))

    @torch.no_grad()
    def update(self, *others: Float[Tensor, "..."]) -> list[Tensor]:
        """Update the frequencies with the counts of all ranks, once per optimiser step.

        Args:
            *others: Further statistics to sum over ranks in the same all-reduce.

        Returns:
            The counts, then the others, summed over ranks. With one process they are the very
            tensors that were summed: clear those only after use.
        """
        counts, *sums = sum_over_ranks(self.pending, *others)
        share = counts / counts.sum(-1, keepdim=True).clamp_min(1)
        self.frequency.lerp_(share, 1 - FREQUENCY_DECAY)
        return [counts, *sums]

    @torch.no_grad()
    def usage(self) -> dict[str, Tensor]:
        """Return the metrics ``perplexity`` and ``codebook_usage``, means over the codebooks.

        The first is the exponential of the frequencies' entropy; the second, the fraction of codes
        chosen more often than a tenth of the uniform share.
        """
        used = self.frequency * self.frequency.shape[-1] > USED_SHARE
        return {
            "perplexity": perplexity(self.frequency).mean(),
            "codebook_usage": used.float().mean(),
        }

    @torch.no_grad()
    def forget(self) -> None:
        """Clear the counts since the last step."""
        self.pending.zero_()


class RunningMeans:
    """Running counts and sums of the vectors that chose each code (van den Oord et al., appendix).

    Not a module, and both tensors are buffers of the owner, ``ema_counts`` and ``ema_sums``: see
    the top of this module.

    Args:
        owner: The quantizer.
        codes: The codes, ``(…, K, D)``, for their shape.
        decay: How much of the past stays in each step.
    """

    def __init__(self, owner: nn.Module, codes: Float[Tensor, "*g k d"], decay: float):
        self.owner, self.decay = owner, decay
        owner.register_buffer("ema_counts", torch.zeros(codes.shape[:-1]))
        owner.register_buffer("ema_sums", torch.zeros(codes.shape))

    @property
    def counts(self) -> Float[Tensor, "*g k"]:
        """Running number of vectors per step that chose each code."""
        return self.owner.get_buffer("ema_counts")

    @property
    def sums(self) -> Float[Tensor, "*g k d"]:
        """Running sum of those vectors."""
        return self.owner.get_buffer("ema_sums")

    @torch.no_grad()
    def update(self, counts: Float[Tensor, "*g k"], sums: Float[Tensor, "*g k d"]) -> None:
        """Add one step's counts and sums, over all ranks."""
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)

    @torch.no_grad()
    def move(self, codes: Float[Tensor, "*g k d"]) -> None:
        """Move each code that was ever chosen to its mean, in place."""
        known = (self.counts > FEWEST_MEMBERS).unsqueeze(-1)
        means = self.sums / self.counts.clamp_min(FEWEST_MEMBERS).unsqueeze(-1)
        codes.copy_(torch.where(known, means, codes))

    @torch.no_grad()
    def restart(self, group: int, rows: Int[Tensor, "r"], vectors: Float[Tensor, "r d"]) -> None:
        """Give revived codes of one codebook the count of an average code, and the sum with it.

        Otherwise the next :meth:`move` would take the codes back to where they were.
        """
        count = self.counts[group].sum() / self.counts.shape[-1]
        self.counts[group, rows] = count
        self.sums[group, rows] = vectors * count


@torch.no_grad()
def count_rows(rows: Int[Tensor, "p"], size: int) -> Int[Tensor, "size"]:
    """Count how often each number from 0 to ``size`` - 1 occurs.

    Unlike ``torch.bincount``, which reads the largest number back, this does not wait for a GPU.

    Args:
        rows: int64 numbers in that range.
        size: How many numbers there are.
    """
    if rows.device.type == "cpu":
        return torch.bincount(rows, minlength=size)
    return rows.new_zeros(size).scatter_add_(0, rows, torch.ones_like(rows))


@torch.no_grad()
def perplexity(counts: Float[Tensor, "*g k"]) -> Float[Tensor, "*g"]:
    """Return ``exp(entropy)`` of the code frequencies: how many codes are in effective use.

    Args:
        counts: How often each code was chosen; any leading dimensions are separate codebooks.
    """
    p = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.exp(-(p * torch.log(p.clamp_min(1e-12))).sum(-1))
