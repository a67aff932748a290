"""Hierarchical k-means: starts a tree of codebooks on the data, level by level, within parents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok_hrvqvae.search import nearest_children
from spectok_hrvqvae.tree import members

ITERATIONS = 10


@torch.no_grad()
def hierarchical_kmeans(
    vectors: Float[Tensor, "p d"], branching: Sequence[int]
) -> list[Float[Tensor, "_ d"]]:
    """Fit each level to the residuals that the levels above leave, separately under each parent.

    Since codes are means of their members, the mean squared residual never grows from one level to
    the next.

    Args:
        vectors: In random order: the first ones of each parent become its first centres.
        branching: Children per level.

    Returns:
        The codes of each level, by node.
    """
    node = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    codebooks, num_parents = [], 1
    for m in branching:
        centres = kmeans_within(vectors, node, num_parents, m)
        node = node * m + nearest_children(vectors, node, centres)
        codebooks.append(centres.flatten(0, 1))
        vectors = vectors - codebooks[-1][node]
        num_parents *= m
    return codebooks


def kmeans_within(
    vectors: Float[Tensor, "p d"], parents: Int[Tensor, "p"], num_parents: int, m: int
) -> Float[Tensor, "g m d"]:
    """Cluster the vectors of each parent into m; a parent without vectors gets zeros."""
    rows, held = members(parents, num_parents, m)
    centres = vectors[rows] * (held > 0).view(-1, 1, 1)
    for _ in range(ITERATIONS):
        node = parents * m + nearest_children(vectors, parents, centres)
        centres = _means(vectors, node, centres.flatten(0, 1)).view_as(centres)
    return centres


def _means(vectors: Tensor, node: Tensor, centres: Tensor) -> Tensor:
    """Return the mean of each node's vectors; nodes without any stay where they are."""
    counts = torch.bincount(node, minlength=len(centres)).unsqueeze(1)
    sums = torch.zeros_like(centres).index_add_(0, node, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)
