"""Judge samples: are they recognised as their class, and are they copies of training images?

Copies are judged by the distance to the nearest training image, relative to two kinds of real
image: held-out images lie at some distance, and reconstructed training images much closer. Samples
should lie about as far as held-out images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.images import to_uint8


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each of N images.

    Args:
        distance: Root mean squared difference of pixels on the scale [0, 1].
        index: Which training image.
    """

    distance: Float[Tensor, "n"]
    index: Int[Tensor, "n"]


def find_nearest(
    images: Float[Tensor, "n c h w"], training: Float[Tensor, "m c h w"], max_shift: int = 0
) -> Nearest:
    """Find the nearest training image of each image, all rounded to 8 bits.

    Args:
        images: In [-1, 1].
        training: In [-1, 1].
        max_shift: Also compare with training images shifted by up to this many pixels each way,
            edges repeated, as augmentation does.
    """
    vectors = _unit_range(images)
    padded = torch.nn.functional.pad(training, [max_shift] * 4, mode="replicate")
    height, width = training.shape[2:]
    best, index = torch.full((len(images),), torch.inf), torch.zeros(len(images)).long()
    for top in range(2 * max_shift + 1):
        for left in range(2 * max_shift + 1):
            moved = padded[:, :, top : top + height, left : left + width]
            distance, nearest = torch.cdist(vectors, _unit_range(moved)).min(dim=1)
            index = torch.where(distance < best, nearest, index)
            best = torch.minimum(distance, best)
    return Nearest(best / vectors.shape[1] ** 0.5, index)


@dataclass(frozen=True)
class Closeness:
    """How close samples are to training images, and two references for that.

    Args:
        samples: Nearest training images of the samples.
        held_out: Those of real images outside the training set.
        reconstructed: Those of training images that the tokenizer reconstructed, where copies
            would lie.
    """

    samples: Nearest
    held_out: Nearest
    reconstructed: Nearest

    def summarize(self) -> dict[str, float]:
        """Return the mean distances, and the fraction of samples that are suspiciously close."""
        closest = self.held_out.distance.min()
        return {
            "nearest_train_distance": float(self.samples.distance.mean()),
            "held_out_nearest_train_distance": float(self.held_out.distance.mean()),
            "copies_nearest_train_distance": float(self.reconstructed.distance.mean()),
            "closer_than_any_held_out": float((self.samples.distance < closest).float().mean()),
        }


def share_of_copies(rows: Int[Tensor, "n t"], others: Int[Tensor, "m t"]) -> float:
    """Return the fraction of rows that occur among others, token for token."""
    known = set(map(tuple, others.tolist()))
    return sum(tuple(row) in known for row in rows.tolist()) / len(rows)


def accuracy(found: Int[Tensor, "n"], wanted: Int[Tensor, "n"]) -> float:
    """Return the fraction of equal entries."""
    return float((found == wanted).float().mean())


def accuracy_by_class(found: Int[Tensor, "n"], wanted: Int[Tensor, "n"]) -> list[float]:
    """Return the fraction of equal entries for each class."""
    classes = range(int(wanted.max()) + 1)
    return [accuracy(found[wanted == k], wanted[wanted == k]) for k in classes]


def _unit_range(images: Tensor) -> Float[Tensor, "n p"]:
    return to_uint8(images).flatten(1).float() / 255
