"""Measuring tokenizers and generated images, by a stated protocol.

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
    from spectok.evaluation.generated import Classes, evaluate_images
    from spectok.evaluation.measuring import Evaluation, evaluate
    from spectok.evaluation.neighbours import precision_recall
    from spectok.evaluation.originals import Sizing, evaluate_originals
    from spectok.evaluation.protocol import compare_results
    from spectok.evaluation.reconstruction import evaluate_reconstruction
    from spectok.evaluation.sets import FeatureSet, compare_features, kernel_distance

_HOME = {
    "Classes": "spectok.evaluation.generated",
    "ClassifierRecipe": "spectok.evaluation.classifier_training",
    "Evaluation": "spectok.evaluation.measuring",
    "FeatureSet": "spectok.evaluation.sets",
    "ImageClassifier": "spectok.evaluation.classifier",
    "Moments": "spectok.evaluation.frechet",
    "Networks": "spectok.evaluation.features",
    "Sizing": "spectok.evaluation.originals",
    "compare_features": "spectok.evaluation.sets",
    "compare_results": "spectok.evaluation.protocol",
    "evaluate": "spectok.evaluation.measuring",
    "evaluate_images": "spectok.evaluation.generated",
    "evaluate_originals": "spectok.evaluation.originals",
    "evaluate_reconstruction": "spectok.evaluation.reconstruction",
    "frechet_distance": "spectok.evaluation.frechet",
    "kernel_distance": "spectok.evaluation.sets",
    "load_classifier": "spectok.evaluation.classifier",
    "precision_recall": "spectok.evaluation.neighbours",
    "train_classifier": "spectok.evaluation.classifier_training",
}

__all__ = [
    "Classes",
    "ClassifierRecipe",
    "Evaluation",
    "FeatureSet",
    "ImageClassifier",
    "Moments",
    "Networks",
    "Sizing",
    "compare_features",
    "compare_results",
    "evaluate",
    "evaluate_images",
    "evaluate_originals",
    "evaluate_reconstruction",
    "frechet_distance",
    "kernel_distance",
    "load_classifier",
    "precision_recall",
    "train_classifier",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
