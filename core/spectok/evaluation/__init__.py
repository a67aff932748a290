"""Measuring tokenizers: what they keep of images, what they spend on it, under which protocol.

The names below load on first use, so ``import spectok.evaluation`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectok.evaluation.classifier import ImageClassifier, load_classifier
    from spectok.evaluation.classifier_training import ClassifierRecipe, train_classifier
    from spectok.evaluation.frechet import Moments, frechet_distance

_HOME = {
    "ClassifierRecipe": "classifier_training",
    "ImageClassifier": "classifier",
    "Moments": "frechet",
    "frechet_distance": "frechet",
    "load_classifier": "classifier",
    "train_classifier": "classifier_training",
}

__all__ = [
    "ClassifierRecipe",
    "ImageClassifier",
    "Moments",
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
