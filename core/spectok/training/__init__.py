"""One visible training loop, and the ``train:`` section that configures it.

The names below load on first use, so ``import spectok.training`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.training.contracts import Callbacks, FitResult, Phase, Resume, Run, StepOutput
    from spectok.training.loop import fit
    from spectok.training.loss_config import AdversarialConfig, LossConfig
    from spectok.training.recipe import TokenizerRecipe, load_tokenizer_recipe
    from spectok.training.tokenizer import train_tokenizer
    from spectok.training.train_config import TrainConfig

_HOME = {
    "AdversarialConfig": "spectok.training.loss_config",
    "Callbacks": "spectok.training.contracts",
    "FitResult": "spectok.training.contracts",
    "LossConfig": "spectok.training.loss_config",
    "Phase": "spectok.training.contracts",
    "Resume": "spectok.training.contracts",
    "Run": "spectok.training.contracts",
    "StepOutput": "spectok.training.contracts",
    "TokenizerRecipe": "spectok.training.recipe",
    "TrainConfig": "spectok.training.train_config",
    "fit": "spectok.training.loop",
    "load_tokenizer_recipe": "spectok.training.recipe",
    "train_tokenizer": "spectok.training.tokenizer",
}

__all__ = [
    "AdversarialConfig",
    "Callbacks",
    "FitResult",
    "LossConfig",
    "Phase",
    "Resume",
    "Run",
    "StepOutput",
    "TokenizerRecipe",
    "TrainConfig",
    "fit",
    "load_tokenizer_recipe",
    "train_tokenizer",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
