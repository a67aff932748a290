"""The device that a command runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def process_device() -> Iterator[Any]:
    """Join the process group that this process was launched in, and give its device."""
    from spectok.training.launch import accelerated
    from spectok.training.train_config import TrainConfig

    with accelerated(TrainConfig.model_validate({}), Path()) as accelerator:
        yield accelerator.device
