"""Stopping when asked: SIGTERM and Ctrl-C end a run after the step at hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from spectok.distributed import world
from spectok.errors import TrainingError
from spectok.interruption import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked the run to stop; listens inside its context.

    A second signal does not wait for the end of the step.

    Args:
        device: Where the processes agree.

    Attributes:
        checkpoint: The last checkpoint, for the error that ends the run.
    """

    def __init__(self, device: torch.device):
        self.checkpoint: Path | None = None
        self._signal = 0
        self._device = device
        self._sent: torch.Tensor | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only it may handle signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            if self._signal:  # it went to the processes that load data, too
                raise Interrupted(self._signal, self.checkpoint) from None
            raise TrainingError(
                "a process that loads data was killed; if memory ran out, lower train.num_workers "
                "or train.batch_size, and resume"
            ) from error

    def agreed(self) -> int:
        """Return the signal on which to stop after this step, the same on every process; or 0.

        With several processes the answer is that of one call before, so that no device waits.
        """
        if world()[1] == 1:
            return self._signal
        sent, self._sent = self._sent, torch.tensor(self._signal, device=self._device)
        dist.all_reduce(self._sent, op=dist.ReduceOp.MAX)
        return 0 if sent is None else int(sent)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal:
            raise Interrupted(number, self.checkpoint)
        self._signal = number
