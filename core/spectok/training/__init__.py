"""One visible training loop, and the ``train:`` section that configures it.

The names below load on first use, so ``import spectok.training`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectok.training.config import TrainConfig

_HOME = {"TrainConfig": "config"}

__all__ = ["TrainConfig"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectok.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spectok.training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
