"""Which nodes of a tree are dead, and how they are revived under the same parent.

A node is dead when its share of its *parent's* vectors falls below a fraction of the fair share,
1/m; measured against all vectors, every child of a rare parent would look dead. A dead leaf is set
to a random residual of its parent. The subtree of a dead inner node codes a region that the data
has left, so the node becomes a copy of its most used sibling, subtree included, displaced towards
one of the sibling's vectors; the two then divide these vectors between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def dead_children(shares: Float[Tensor, "g m"], below: float) -> Bool[Tensor, "g m"]:
    """Return which children get less than a fraction of the fair share of their parent's vectors.

    Children of a parent without vectors do not count as dead: nothing is known about them.
    """
    total = shares.sum(1, keepdim=True)
    return (shares * shares.shape[1] < below * total) & (total > 0)


def split_pairs(
    shares: Float[Tensor, "g m"], below: float
) -> tuple[Int[Tensor, "r"], Int[Tensor, "r"]]:
    """Pair, under each parent, the i-th dead child with its i-th most used sibling.

    A sibling is copied at most once, and only if half of its share is still above the threshold.

    Returns:
        Numbers of the nodes to move, and of those to copy.
    """
    m = shares.shape[1]
    dead = dead_children(shares, below)
    rich = ~dead & (shares * m >= 2 * below * shares.sum(1, keepdim=True))
    num_pairs = torch.minimum(dead.sum(1), rich.sum(1)).unsqueeze(1)
    dead_first = (~dead).byte().argsort(dim=1, stable=True)
    most_used_first = shares.argsort(dim=1, descending=True, stable=True)
    paired = torch.arange(m, device=shares.device) < num_pairs
    start = torch.arange(len(shares), device=shares.device).unsqueeze(1) * m
    return (start + dead_first)[paired], (start + most_used_first)[paired]


def with_fair_share(
    shares: Float[Tensor, "g m"], revived: Bool[Tensor, "g m"]
) -> Float[Tensor, "g m"]:
    """Give revived children the share 1/m, taken from their siblings: the parent's total stays."""
    total = shares.sum(1, keepdim=True)
    given = torch.where(revived, total / shares.shape[1], shares)
    return given * (total / given.sum(1, keepdim=True).clamp_min(torch.finfo(given.dtype).tiny))
