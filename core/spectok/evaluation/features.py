"""Metrics that compare images in a network's features: LPIPS, and distances between sets.

The weights of these networks come from files. If a file is missing, :func:`feature_metrics` reports
which one the metric needs; other weights never take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectok.errors import CheckpointError, InputError
from spectok.evaluation.neighbours import K
from spectok.evaluation.sets import (
    KEPT,
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    FeatureSet,
    compare_features,
)
from spectok.images import to_float, to_uint8
from spectok.metrics import ImageMean, SetMetric

if TYPE_CHECKING:
    from spectok.evaluation.classifier import ImageClassifier


@dataclass(frozen=True)
class Networks:
    """Where to find the networks in whose features images are compared.

    Args:
        lpips: File of the backbone's weights. None: torch's cache.
        lpips_network: ``alex`` (which most papers report), ``vgg`` or ``squeeze``.
        inception: File of Inception's weights. None: torch's cache.
        classifier: Folder of a trained classifier. None: that distance is not measured.
    """

    lpips: Path | None = None
    lpips_network: str = "alex"
    inception: Path | None = None
    classifier: Path | None = None


Names = Mapping[str, Mapping[str, str]]
RECONSTRUCTED: Names = {
    "inception": {
        "frechet": "rfid",
        "kid": "rkid",
        "kid_std": "rkid_std",
        "precision": "inception_precision",
        "recall": "inception_recall",
    },
    "classifier": {
        "frechet": "classifier_frechet",
        "kid": "classifier_kid",
        "kid_std": "classifier_kid_std",
        "precision": "classifier_precision",
        "recall": "classifier_recall",
    },
}
"""What the numbers of ``compare_features`` are called, by network, for reconstructions."""


@dataclass(frozen=True)
class Extractor:
    """A network in whose features sets of images are compared.

    Args:
        extract: Images in [-1, 1] -> (B, D).
        identity: Kind and hash of its weights.
        classifier: The network itself, if it is a classifier.
    """

    extract: Callable[[Tensor], Tensor]
    identity: str
    classifier: ImageClassifier | None = None


@dataclass
class Extractors:
    """The networks whose weights are available, and those whose weights are not.

    Args:
        found: Kind, ``"inception"`` or ``"classifier"`` -> network.
        missing: Kind -> what it would need.
    """

    found: dict[str, Extractor] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any] | None:
        """Return what decides the numbers besides the weights, and how good a classifier is."""
        if not self.found:
            return None
        classifiers = [e.classifier for e in self.found.values() if e.classifier is not None]
        judges = [
            {key: model.config[key] for key in ("held_out_accuracy", "trained_on")}
            for model in classifiers
        ]
        return {
            "kid": f"{KID_SUBSETS} subsets of at most {KID_SUBSET_SIZE}",
            "precision_recall": f"k = {K}",
            "kept": KEPT,
            **({"classifier": judges[0]} if judges else {}),
        }


@dataclass
class FeatureMetrics:
    """The feature metrics that can be measured, and those that cannot.

    Args:
        metrics: Name -> metric, ready to measure one set; those of a network's features are one,
            whose result is several numbers by name.
        extractors: Name -> network and hash of its weights.
        not_measured: Name -> what the metric would need.
        settings: What else decides the numbers; see :meth:`Extractors.settings`.
    """

    metrics: dict[str, SetMetric] = field(default_factory=dict)
    extractors: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] | None = None


class FeatureDistances(SetMetric):
    """How the features of images and of their reconstructions differ, as sets.

    Both are rounded to 8 bits first, as when saved.

    Args:
        extract: Images in [-1, 1] -> (B, D).
        names: What each number of :func:`~spectok.evaluation.sets.compare_features` is called.
    """

    def __init__(self, extract: Callable[[Tensor], Tensor], names: Mapping[str, str]):
        self._extract, self._names = extract, names
        self._sides = (FeatureSet(), FeatureSet())

    def add(self, images: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Add the features of a batch."""
        for features, side in zip(self._sides, (images, reconstruction)):
            features.add(self._extract(to_float(to_uint8(side))))

    def result(self) -> dict[str, float]:
        """Return the numbers by name.

        Raises:
            InputError: If fewer than two images were added.
        """
        found = compare_features(*self._sides)
        return {self._names[key]: value for key, value in found.items()}


def feature_metrics(
    networks: Networks, image_shape: tuple[int, int, int], device: torch.device | str
) -> FeatureMetrics:
    """Load the networks whose weights are available, to measure reconstructions.

    Args:
        networks: Where to find them.
        image_shape: (C, H, W) of the images.
        device: Device to run them on.

    Raises:
        CheckpointError: If a file that was given cannot be used.
        InputError: If a given classifier takes images of another shape.
    """
    found = FeatureMetrics()
    try:
        found.metrics["lpips"], found.extractors["lpips"] = _lpips(networks, image_shape, device)
    except (CheckpointError, InputError) as error:
        if networks.lpips is not None:
            raise
        found.not_measured["lpips"] = str(error)
    extractors = find_extractors(networks, image_shape, device)
    for kind, names in RECONSTRUCTED.items():
        if extractor := extractors.found.get(kind):
            found.metrics[kind] = FeatureDistances(extractor.extract, names)
            found.extractors[names["frechet"]] = extractor.identity
        else:
            found.not_measured[names["frechet"]] = extractors.missing[kind]
    found.settings = extractors.settings()
    return found


def find_extractors(
    networks: Networks, image_shape: tuple[int, int, int], device: torch.device | str
) -> Extractors:
    """Load the networks whose features compare sets of images.

    Args:
        networks: Where to find them.
        image_shape: (C, H, W) of the images.
        device: Device to run them on.

    Raises:
        CheckpointError: If a file that was given cannot be used.
        InputError: If a given classifier takes images of another shape.
    """
    found = Extractors()
    kinds: dict[str, tuple[Any, Callable[..., Extractor]]] = {
        "inception": (networks.inception, _inception),
        "classifier": (networks.classifier, _classifier),
    }
    for kind, (given, start) in kinds.items():
        try:
            found.found[kind] = start(networks, image_shape, device)
        except (CheckpointError, InputError) as error:
            if given is not None:
                raise
            found.missing[kind] = str(error)
    return found


def too_few(count: int, names: Mapping[str, str]) -> dict[str, str]:
    """Return the numbers that so few images do not have, with the reason."""
    reason = f"takes more than k = {K} images, not {count}"
    names_of_both = [names[key] for key in ("precision", "recall") if key in names]
    return {} if count > K else dict.fromkeys(names_of_both, reason)


def _lpips(networks: Networks, image_shape: Any, device: Any) -> tuple[SetMetric, str]:
    from spectok.losses.perceptual import LPIPS, cached_backbone, check_size, file_hash

    network = networks.lpips_network
    check_size(network, image_shape[1:])
    path = networks.lpips or cached_backbone(network)
    distance = LPIPS(network, path).to(device)

    def measure(images: Tensor, reconstruction: Tensor) -> Tensor:
        return distance(to_float(to_uint8(reconstruction)), to_float(to_uint8(images)))

    return ImageMean(measure), f"lpips {network} {file_hash(path)}"


def _inception(networks: Networks, image_shape: Any, device: Any) -> Extractor:
    from spectok.evaluation.inception import InceptionFeatures, cached_inception
    from spectok.losses.perceptual import file_hash

    path = networks.inception or cached_inception()
    return Extractor(InceptionFeatures(path).to(device), f"inception {file_hash(path)}")


def _classifier(networks: Networks, image_shape: Any, device: Any) -> Extractor:
    from spectok.evaluation.classifier import load_classifier

    if networks.classifier is None:
        raise CheckpointError(
            "needs a classifier trained on such images: 'spectok train classifier --data …', then "
            "--classifier FOLDER"
        )
    model: Any = load_classifier(networks.classifier)
    classifier = model.to(device)
    if classifier.image_shape != tuple(image_shape):
        raise InputError(
            f"classifier {networks.classifier} takes images of shape {classifier.image_shape}, not "
            f"{tuple(image_shape)}; train one for these images"
        )
    return Extractor(classifier.features, f"classifier {classifier.fingerprint}", classifier)
