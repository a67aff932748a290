"""One visible training loop, and the ``train:`` section that configures it.

The names below load on first use, so ``import spectok.training`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectok.training.config import TrainConfig
    from spectok.training.contracts import FitResult, Hooks, Phase, Run, StepOutput
    from spectok.training.loop import fit
    from spectok.training.loss_config import AdversarialConfig, LossConfig
    from spectok.training.tokenizer import train_tokenizer

_HOME = {
    "AdversarialConfig": "loss_config",
    "FitResult": "contracts",
    "Hooks": "contracts",
    "LossConfig": "loss_config",
    "Phase": "contracts",
    "Run": "contracts",
    "StepOutput": "contracts",
    "TrainConfig": "config",
    "fit": "loop",
    "train_tokenizer": "tokenizer",
}

__all__ = [
    "AdversarialConfig",
    "FitResult",
    "Hooks",
    "LossConfig",
    "Phase",
    "Run",
    "StepOutput",
    "TrainConfig",
    "fit",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectok.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spectok.training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
