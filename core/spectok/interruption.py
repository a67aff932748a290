"""What ends work that somebody stopped; no error of the work itself."""

from __future__ import annotations

from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """Work that was stopped by a signal.

    Args:
        signal: Number of the signal.
        checkpoint: The checkpoint to go on from; None if there is none.
    """

    def __init__(self, signal: int, checkpoint: Path | None = None):
        self.signal, self.checkpoint = signal, checkpoint
        super().__init__(f"stopped by signal {signal}")
