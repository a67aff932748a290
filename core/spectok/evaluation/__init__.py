"""Measuring tokenizers: what they keep of images and what they spend on it, by a stated protocol.

The names below load on first use, so ``import spectok.evaluation`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.evaluation.classifier import ImageClassifier, load_classifier
    from spectok.evaluation.classifier_training import ClassifierRecipe, train_classifier
    from spectok.evaluation.features import Networks
    from spectok.evaluation.frechet import Moments, frechet_distance
    from spectok.evaluation.measuring import Evaluation, evaluate
    from spectok.evaluation.protocol import compare_results
    from spectok.evaluation.reconstruction import evaluate_reconstruction

_HOME = {
    "ClassifierRecipe": "spectok.evaluation.classifier_training",
    "Evaluation": "spectok.evaluation.measuring",
    "ImageClassifier": "spectok.evaluation.classifier",
    "Moments": "spectok.evaluation.frechet",
    "Networks": "spectok.evaluation.features",
    "compare_results": "spectok.evaluation.protocol",
    "evaluate": "spectok.evaluation.measuring",
    "evaluate_reconstruction": "spectok.evaluation.reconstruction",
    "frechet_distance": "spectok.evaluation.frechet",
    "load_classifier": "spectok.evaluation.classifier",
    "train_classifier": "spectok.evaluation.classifier_training",
}

__all__ = [
    "ClassifierRecipe",
    "Evaluation",
    "ImageClassifier",
    "Moments",
    "Networks",
    "compare_results",
    "evaluate",
    "evaluate_reconstruction",
    "frechet_distance",
    "load_classifier",
    "train_classifier",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
