"""Measuring tokenizers: what they keep of images, what they spend on it, under which protocol.

The names below load on first use, so ``import spectok.evaluation`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectok.evaluation.classifier import ImageClassifier, load_classifier
    from spectok.evaluation.classifier_training import ClassifierRecipe, train_classifier
    from spectok.evaluation.features import Networks
    from spectok.evaluation.frechet import Moments, frechet_distance
    from spectok.evaluation.measuring import Evaluation, evaluate
    from spectok.evaluation.protocol import compare_results

_HOME = {
    "ClassifierRecipe": "classifier_training",
    "Evaluation": "measuring",
    "ImageClassifier": "classifier",
    "Moments": "frechet",
    "Networks": "features",
    "compare_results": "protocol",
    "evaluate": "measuring",
    "frechet_distance": "frechet",
    "load_classifier": "classifier",
    "train_classifier": "classifier_training",
}

__all__ = [
    "ClassifierRecipe",
    "Evaluation",
    "ImageClassifier",
    "Moments",
    "Networks",
    "compare_results",
    "evaluate",
    "frechet_distance",
    "load_classifier",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectok.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spectok.evaluation.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
