"""Hierarchical k-means: starts a tree of codebooks on the data, level by level within parents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.quantizers import count_rows
from spectok_hrvqvae.search import nearest_children
from spectok_hrvqvae.tree import members

ITERATIONS = 10


@torch.no_grad()
def hierarchical_kmeans(
    vectors: Float[Tensor, "p d"], branching: Sequence[int]
) -> list[Float[Tensor, "_ d"]]:
    """Fit each level to the residuals of the levels above, separately under each parent.

    Since codes are means of their members, the mean squared residual never grows from one level to
    the next.

    Args:
        vectors: In random order: each parent's first ones become its first centres.
        branching: Children per level.

    Returns:
        The codes of each level, by node.
    """
    parents = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    origins = vectors.new_zeros(1, vectors.shape[1])
    codebooks = []
    for m in branching:
        codes = kmeans_within(vectors, parents, origins, m)
        parents = parents * m + nearest_children(vectors, parents, codes, origins)
        origins = (origins.unsqueeze(1) + codes).flatten(0, 1)
        codebooks.append(codes.flatten(0, 1))
    return codebooks


def kmeans_within(
    vectors: Float[Tensor, "p d"],
    parents: Int[Tensor, "p"],
    origins: Float[Tensor, "g d"],
    m: int,
) -> Float[Tensor, "g m d"]:
    """Cluster the vectors of each parent into m.

    Args:
        vectors: Vectors, not residuals.
        parents: The parent of each.
        origins: Position of each parent.
        m: Clusters under each parent.

    Returns:
        Centres relative to their parent; zero under a parent without vectors.
    """
    rows, held = members(parents, len(origins), m)
    at_parent = origins.unsqueeze(1)
    centres = torch.where((held > 0).view(-1, 1, 1), vectors[rows], at_parent)
    for _ in range(ITERATIONS):
        nearest = nearest_children(vectors, parents, centres - at_parent, origins)
        node = parents * m + nearest
        centres = _means(vectors, node, centres.flatten(0, 1)).view_as(centres)
    return centres - at_parent


def _means(vectors: Tensor, node: Tensor, centres: Tensor) -> Tensor:
    """Return the mean of each node's vectors; nodes without vectors keep their centre."""
    counts = count_rows(node, len(centres)).unsqueeze(1)
    sums = torch.zeros_like(centres).index_add_(0, node, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)
