"""Comparing two sets of images by the feature vectors of a network.

Moments are kept of all images, vectors only of the first :data:`KEPT`: memory does not grow with
the number of images beyond that.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.evaluation.frechet import Moments, frechet_distance
from spectok.evaluation.neighbours import K, precision_recall
from spectok.evaluation.vectors import check_comparable

KEPT = 10_000
"""Images of a set whose vectors are kept, for KID, precision and recall: the first ones."""
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Of KID, as its authors and torchmetrics choose them."""
FEWEST = 2  # images that have a covariance


class FeatureSet:
    """The feature vectors of a set of images, which come in batches."""

    def __init__(self) -> None:
        self.moments = Moments()
        self._vectors: list[Tensor] = []
        self._held = 0

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Add vectors, in the order of the images.

        Raises:
            InputError: See :meth:`Moments.add`.
        """
        self.moments.add(features)
        if (missing := KEPT - self._held) > 0:
            kept = features.detach()[:missing].to("cpu", torch.float32, copy=True)
            self._vectors.append(kept)
            self._held += len(kept)

    @property
    def vectors(self) -> Float[Tensor, "n d"]:
        """The vectors of the first images, at most :data:`KEPT`."""
        return torch.cat(self._vectors) if self._vectors else torch.zeros(0, 0)

    def __len__(self) -> int:
        return self.moments.count


def compare_features(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    """Return how two sets of images differ in the features of one network.

    Args:
        real: The reference.
        fake: What is judged.

    Returns:
        ``frechet``; ``kid`` and ``kid_std``; ``precision`` and ``recall``, unless a set has no
        more than :data:`~spectok.evaluation.neighbours.K` images.

    Raises:
        InputError: If either set has fewer than two images, or their networks differ.
    """
    found = {"frechet": frechet_distance(real.moments, fake.moments)}
    vectors = real.vectors, fake.vectors
    found["kid"], found["kid_std"] = kernel_distance(*vectors)
    if min(map(len, vectors)) > K:
        found["precision"], found["recall"] = precision_recall(*vectors)
    return found


def kernel_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> tuple[float, float]:
    """Return the kernel distance of two sets of vectors, and its standard deviation over subsets.

    Bińkowski et al. 2018: the unbiased estimate of the squared MMD with the kernel
    (x·y / D + 1)³, averaged over :data:`KID_SUBSETS` pairs of random subsets of
    :data:`KID_SUBSET_SIZE` vectors; in features of Inception it is KID. Where a set is smaller,
    subsets are as large as that set; two small sets of equal size are compared once. It can be
    slightly negative. The same vectors always give the same subsets.

    Args:
        real: Feature vectors.
        fake: Those of the other set.

    Raises:
        InputError: If either set has fewer than two vectors, they are not finite, or their lengths
            differ.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    check_comparable(real, fake)
    smallest = min(len(real), len(fake))
    if smallest < FEWEST:
        raise InputError(f"a kernel distance takes at least two images of each set, not {smallest}")
    once = len(real) == len(fake) <= KID_SUBSET_SIZE
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            nn.Identity(),
            subsets=1 if once else KID_SUBSETS,
            subset_size=min(smallest, KID_SUBSET_SIZE),
            sync_on_compute=False,  # the other processes may be doing something else
        )
        metric.update(real.double(), real=True)  # pyright: ignore - a torch module's attribute
        metric.update(fake.double(), real=False)  # pyright: ignore
        torch.manual_seed(0)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
