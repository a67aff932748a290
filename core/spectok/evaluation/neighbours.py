"""Precision and recall of a set of images, by nearest neighbours in the features of a network.

Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models".
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spectok.errors import InputError
from spectok.evaluation.vectors import check_comparable

K = 3
"""Neighbours that decide how far a vector's surroundings reach; the paper's choice."""
BLOCK_BYTES = 4 << 20  # of distances held at once
SAME = 1e-12  # of a squared length: what rounding makes of a squared distance of 0


def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = K
) -> tuple[float, float]:
    """Return the precision and the recall of generated images (Eqs. 1 and 2 of the paper).

    A ball around each vector of a set reaches to its ``k``-th nearest neighbour in the set.
    Precision is the share of generated vectors inside a ball of the real ones; recall is the share
    of real vectors inside a ball of the generated ones. In an exact copy of the real set both are
    1. Memory is bounded by :data:`BLOCK_BYTES`, a few times over.

    Args:
        real: Feature vectors of real images.
        fake: Those of generated images.
        k: Neighbours.

    Raises:
        InputError: If a set has no more than ``k`` vectors, they are not finite, or their lengths
            differ.
    """
    check_comparable(real, fake)
    if min(len(real), len(fake)) <= k:
        raise InputError(
            f"precision and recall take more than k = {k} images of each set, not {len(real)} and "
            f"{len(fake)}"
        )
    precision = inside(fake, real, radii(real, k)).double().mean()
    recall = inside(real, fake, radii(fake, k)).double().mean()
    return float(precision), float(recall)


def radii(vectors: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n"]:
    """Return the squared distance of each vector from its ``k``-th neighbour, itself left out."""
    found, start = [], 0
    for part in vectors.split(_rows_at_once(vectors)):
        squares = _squared_distances(part, vectors)
        rows = torch.arange(len(part))
        squares[rows, rows + start] = torch.inf
        found.append(squares.kthvalue(k, dim=1).values)
        start += len(part)
    return torch.cat(found)


def inside(
    vectors: Float[Tensor, "m d"], centres: Float[Tensor, "n d"], reach: Float[Tensor, "n"]
) -> Bool[Tensor, "m"]:
    """Return which vectors lie in at least one ball, its surface included.

    Args:
        vectors: What may lie inside.
        centres: Centres of the balls.
        reach: Their squared radii.
    """
    lengths = centres.double().square().sum(1)
    surface = reach + SAME * lengths  # equal vectors are not at distance 0, but at that of rounding
    parts = vectors.split(_rows_at_once(centres))
    return torch.cat([(_squared_distances(part, centres) <= surface).any(1) for part in parts])


def _rows_at_once(others: Tensor) -> int:
    return max(1, BLOCK_BYTES // (8 * len(others)))


def _squared_distances(rows: Tensor, others: Tensor) -> Float[Tensor, "r n"]:
    """Return |a|² + |b|² - 2ab in float64; on a CPU several times faster than by differences."""
    a, b = rows.double(), others.double()
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)
