"""``evaluate_images``: how close generated images are to real ones, by a stated protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from spectok.data import ImageDataset
from spectok.errors import InputError
from spectok.evaluation.features import (
    RECONSTRUCTED,
    Extractor,
    Names,
    Networks,
    find_extractors,
    too_few,
)
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import interior_of
from spectok.evaluation.sets import FEWEST, FeatureSet, compare_features
from spectok.images import to_float, to_uint8
from spectok.machine import describe_machine

GENERATED: Names = {
    **RECONSTRUCTED,
    "inception": {
        **RECONSTRUCTED["inception"],
        **{"frechet": "fid", "kid": "kid", "kid_std": "kid_std"},
    },
}
"""What the numbers of ``compare_features`` are called, by network, for generated images."""
ACCURACY = "class_accuracy"
AT_ONCE = 64
"""Images a network sees at once: always the same, so that its sums are rounded alike."""


@dataclass(frozen=True)
class Classes:
    """The classes that generated images should show.

    Args:
        labels: One for each image.
        num_classes: How many classes there are.
        names: Name of each class, if classes have names.
    """

    labels: Sequence[int]
    num_classes: int
    names: Sequence[str] | None = None


def evaluate_images(
    images: Iterable[Tensor],
    dataset: ImageDataset,
    networks: Networks | None = None,
    *,
    classes: Classes | None = None,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Compare generated images with real ones, and count those recognised as their class.

    Images are rounded to 8 bits. Memory does not grow with their number beyond what
    :data:`spectok.evaluation.sets.KEPT` feature vectors take. If the data set has an added border,
    everything is measured inside it.

    Args:
        images: Batches (B, C, H, W) in [-1, 1], of the shape of the data set's.
        dataset: The real images, without augmentation.
        networks: Where to find the networks in whose features sets are compared.
        classes: What the images should show. None: they have no class.
        device: Device to run the networks on.
        precision: Type of the numbers that the images were computed in, for the protocol.
        seed: Seed of the images, for the protocol.
        on_images: Called with the number of images done since the last call, real ones included.

    Returns:
        Plain JSON types: ``metrics``; ``not_measured``, other metrics with what each would need;
        ``num_images``; ``protocol`` and ``machine``.

    Raises:
        InputError: If there are fewer than two images of either set, or they have another shape.
        CheckpointError: If given weights cannot be used.
    """
    shape: Any = tuple(interior_of(dataset[0]["images"], dataset).shape)
    extractors = find_extractors(networks or Networks(), shape, device)
    fake, real = (ImageSet(extractors.found, device, on_images) for _ in range(2))
    for batch in rebatched(images, AT_ONCE):
        check_same_shape(batch, dataset)
        fake.add(interior_of(batch, dataset))
    for batch in DataLoader(dataset, batch_size=AT_ONCE, collate_fn=_images_of):
        real.add(interior_of(batch, dataset))
    smaller = min(fake.count, real.count)
    if smaller < FEWEST:
        raise InputError(
            f"{fake.count} generated and {real.count} real images cannot be compared as sets; "
            f"give at least {FEWEST} of each"
        )
    metrics: dict[str, float] = {}
    not_measured = {GENERATED[kind]["frechet"]: why for kind, why in extractors.missing.items()}
    for kind in extractors.found:
        numbers = compare_features(real.features[kind], fake.features[kind])
        metrics |= {GENERATED[kind][key]: value for key, value in numbers.items()}
        not_measured |= too_few(smaller, GENERATED[kind])
    if classes is not None:
        judge = extractors.found.get("classifier")
        if reason := why_not_classified(judge, classes):
            not_measured[ACCURACY] = reason
        else:
            metrics[ACCURACY] = fake.accuracy(classes.labels)
    used = {GENERATED[kind]["frechet"]: found.identity for kind, found in extractors.found.items()}
    number = {"num_generated": fake.count}
    return {
        "metrics": metrics,
        "not_measured": not_measured,
        "num_images": fake.count,
        "protocol": make_protocol(dataset, precision, seed, used, extractors.settings(), **number),
        "machine": describe_machine(),
    }


class ImageSet:
    """The features of a set of images by network, and the class that a classifier sees in each.

    Args:
        extractors: Kind -> network.
        device: Device of the networks.
        on_images: Called with the number of images done since the last call.
    """

    def __init__(
        self,
        extractors: Mapping[str, Extractor],
        device: torch.device | str,
        on_images: Callable[[int], None] | None = None,
    ):
        self.count, self.features = 0, {kind: FeatureSet() for kind in extractors}
        self._extractors, self._device, self._done = extractors, device, on_images
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def add(self, images: Float[Tensor, "b c h w"]) -> None:
        """Add a batch, rounded to 8 bits."""
        rounded = to_float(to_uint8(images)).to(self._device)
        for kind, extractor in self._extractors.items():
            features = extractor.extract(rounded)
            self.features[kind].add(features)
            if extractor.classifier is not None:
                self._seen.append(extractor.classifier.head(features).argmax(1).cpu())
        self.count += len(images)
        if self._done is not None:
            self._done(len(images))

    def accuracy(self, labels: Sequence[int]) -> float:
        """Return the share of images in which the classifier sees the given class.

        Raises:
            InputError: If there is not one label for each image.
        """
        if len(labels) != self.count:
            raise InputError(f"{len(labels)} labels for {self.count} images; give one for each")
        return float((torch.cat(self._seen) == torch.as_tensor(labels)).double().mean())


def check_same_shape(images: Tensor, dataset: ImageDataset) -> None:
    """Refuse generated images of another shape than the real ones.

    Raises:
        InputError: Names both shapes.
    """
    if tuple(images.shape[1:]) != tuple(dataset.image_shape):
        raise InputError(
            f"generated images of shape {tuple(images.shape[1:])} cannot be compared with real "
            f"ones of shape {tuple(dataset.image_shape)}; set data.image_size and data.channels"
        )


def why_not_classified(judge: Extractor | None, classes: Classes) -> str | None:
    """Return why a classifier cannot tell these classes; None if it can."""
    if judge is None or judge.classifier is None:
        return "needs a classifier of these classes: --classifier FOLDER"
    config = judge.classifier.config
    if config["num_classes"] != classes.num_classes:
        return (
            f"the classifier knows {config['num_classes']} classes, and the images have "
            f"{classes.num_classes}"
        )
    if config["class_names"] and classes.names and config["class_names"] != list(classes.names):
        return "the classes of the classifier have other names than those of the images"
    return None


def rebatched(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroup batches of any size into batches of one size; the last may be smaller."""
    held: list[Tensor] = []
    for batch in images:
        held.append(batch)
        while sum(map(len, held)) >= size:
            together = torch.cat(held)
            yield together[:size]
            held = [together[size:]]
    if rest := [part for part in held if len(part)]:
        yield torch.cat(rest)


def _images_of(items: list[dict[str, Any]]) -> Tensor:
    return torch.stack([item["images"] for item in items])
