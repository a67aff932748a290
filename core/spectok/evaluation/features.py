"""Metrics that compare images in a network's features: Fréchet distances, LPIPS.

The weights of these networks come from files. :func:`feature_metrics` says of each metric whose
file is missing what it needs; nothing is ever measured with other weights in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectok.errors import CheckpointError, InputError
from spectok.evaluation.frechet import Moments, frechet_distance
from spectok.images import to_float, to_uint8
from spectok.metrics import ImageMean, SetMetric


@dataclass(frozen=True)
class Networks:
    """Files of the networks in whose features images are compared.

    Args:
        lpips: File of the backbone's weights. None: torch's cache.
        lpips_network: ``alex``, which most tables report, ``vgg`` or ``squeeze``.
        inception: File of Inception's weights. None: torch's cache.
        classifier: Folder of a trained classifier. None: no distance in its features.
    """

    lpips: Path | None = None
    lpips_network: str = "alex"
    inception: Path | None = None
    classifier: Path | None = None


@dataclass
class FeatureMetrics:
    """What can be measured in features, and what cannot.

    Args:
        metrics: Ready to measure one set, by name.
        extractors: Name -> which network, with a hash of its weights.
        not_measured: Name -> what it would need.
    """

    metrics: dict[str, SetMetric] = field(default_factory=dict)
    extractors: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)


class FeatureDistance(SetMetric):
    """The Fréchet distance between the features of images and of their reconstructions.

    Both are rounded to 8 bits first, as a saved picture would be.

    Args:
        extract: Images in [-1, 1] -> (B, D).
    """

    def __init__(self, extract: Callable[[Tensor], Tensor]):
        self._extract, self._sides = extract, (Moments(), Moments())

    def add(self, images: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Take in the features of a batch."""
        for moments, side in zip(self._sides, (images, reconstruction)):
            moments.add(self._extract(to_float(to_uint8(side))))

    def result(self) -> float:
        """Return the distance.

        Raises:
            InputError: If there were fewer than two images.
        """
        return frechet_distance(*self._sides)


def feature_metrics(
    networks: Networks, image_shape: tuple[int, int, int], device: torch.device | str
) -> FeatureMetrics:
    """Load the networks whose weights are on this machine.

    Args:
        networks: Where they are.
        image_shape: (C, H, W) of the images.
        device: Where they run.

    Raises:
        CheckpointError: If a file that was given cannot be used.
        InputError: If a classifier was given that takes other images.
    """
    found = FeatureMetrics()
    kinds: dict[str, tuple[Any, Callable[..., tuple[SetMetric, str]]]] = {
        "lpips": (networks.lpips, _lpips),
        "rfid": (networks.inception, _rfid),
        "classifier_frechet": (networks.classifier, _classifier_frechet),
    }
    for name, (given, start) in kinds.items():
        try:
            metric, extractor = start(networks, image_shape, device)
        except (CheckpointError, InputError) as error:
            if given is not None:
                raise
            found.not_measured[name] = str(error)
        else:
            found.metrics[name], found.extractors[name] = metric, extractor
    return found


def _lpips(networks: Networks, image_shape: Any, device: Any) -> tuple[SetMetric, str]:
    from spectok.losses.perceptual import LPIPS, cached_backbone, check_size, file_hash

    network = networks.lpips_network
    check_size(network, image_shape[1:])
    path = networks.lpips or cached_backbone(network)
    distance = LPIPS(network, path).to(device)

    def measure(images: Tensor, reconstruction: Tensor) -> Tensor:
        return distance(to_float(to_uint8(reconstruction)), to_float(to_uint8(images)))

    return ImageMean(measure), f"lpips {network} {file_hash(path)}"


def _rfid(networks: Networks, image_shape: Any, device: Any) -> tuple[SetMetric, str]:
    from spectok.evaluation.inception import InceptionFeatures, cached_inception
    from spectok.losses.perceptual import file_hash

    path = networks.inception or cached_inception()
    return FeatureDistance(InceptionFeatures(path).to(device)), f"inception {file_hash(path)}"


def _classifier_frechet(networks: Networks, image_shape: Any, device: Any) -> tuple[SetMetric, str]:
    from spectok.evaluation.classifier import load_classifier

    if networks.classifier is None:
        raise CheckpointError(
            "needs a classifier trained on such images: 'spectok train classifier --data …', then "
            "--classifier FOLDER"
        )
    classifier = load_classifier(networks.classifier).to(device)
    if classifier.image_shape != tuple(image_shape):
        raise InputError(
            f"classifier {networks.classifier} takes images of shape {classifier.image_shape}, not "
            f"{tuple(image_shape)}; train one for these images"
        )
    return FeatureDistance(classifier.features), f"classifier {classifier.fingerprint}"
