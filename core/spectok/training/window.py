"""Means of losses and metrics between two lines of the log, kept on the device until read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from spectok.errors import TrainingError


@dataclass
class _Group:
    """Terms that come together: one vector instead of many scalars."""

    total: Tensor
    first_bad: Tensor
    count: int = 0


class Window:
    """Sums scalars without waiting for the device.

    A step costs a handful of small kernels and no synchronisation. The first step at which a loss
    was not finite is remembered on the device too.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}

    @torch.no_grad()
    def add(self, scalars: dict[str, Tensor], step: int, *, must_be_finite: bool = False) -> None:
        """Add the scalars of one micro-batch.

        Args:
            scalars: Scalar tensors by name; the same names on every rank.
            step: The optimiser step they belong to, counted from 1.
            must_be_finite: Let :meth:`read` fail if one is not.
        """
        if not scalars:
            return
        values = torch.stack([v.detach().float().reshape(()) for v in scalars.values()])
        group = self._groups.get(tuple(scalars))
        if group is None:
            group = _Group(torch.zeros_like(values), torch.zeros_like(values, dtype=torch.int64))
            self._groups[tuple(scalars)] = group
        group.total += values
        group.count += 1
        if must_be_finite:
            group.first_bad.masked_fill_(~values.isfinite() & (group.first_bad == 0), step)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over micro-batches and ranks since the last call, and start afresh.

        Raises:
            TrainingError: If a loss was not finite on any rank; names it and the step.
        """
        totals: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        bad: list[tuple[int, str]] = []
        for names, group in self._groups.items():
            total = accelerator.reduce(group.total, "mean").tolist()  # type: ignore[union-attr]
            first_bad = accelerator.gather(group.first_bad.unsqueeze(0)).amax(0)  # type: ignore
            totals.update(dict(zip(names, total)))
            counts.update(dict.fromkeys(names, group.count))
            bad += [(step, name) for step, name in zip(first_bad.tolist(), names) if step]
        self._groups.clear()
        if bad:
            step, name = min(bad, key=lambda item: item[0])
            raise TrainingError(
                f"{name} is not finite at step {step}; lower train.learning_rate, set "
                f"train.max_grad_norm (e.g. 1.0), or leave mixed precision off"
            )
        return {name: totals[name] / counts[name] for name in totals}
