"""Which codes of a tree have died, and what they are given without leaving their parent.

A node is dead when its share of its *parent's* vectors falls below a fraction of the fair share,
1/m; measured against all vectors, every child of a rare parent would look dead. A dead leaf is set
to a random residual of its parent. Below a dead inner node there are codes for a place that the
data has left, so it becomes a copy of its most used sibling together with the whole subtree,
displaced towards one of the sibling's vectors, and the two then divide them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def dead_children(shares: Float[Tensor, "g m"], below: float) -> Bool[Tensor, "g m"]:
    """Return which children get less than a fraction of the fair share of their parent's vectors.

    Children of a parent that gets nothing are not dead: nothing is known of them.
    """
    total = shares.sum(1, keepdim=True)
    return (shares * shares.shape[1] < below * total) & (total > 0)


def split_pairs(
    shares: Float[Tensor, "g m"], below: float
) -> tuple[Int[Tensor, "r"], Int[Tensor, "r"]]:
    """Pair, under each parent, the i-th dead child with its i-th most used sibling.

    A sibling is taken only if half of its share is still above the threshold, and only once.

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
    """Give revived children the share 1/m, at the cost of their siblings: the parent's stays."""
    total = shares.sum(1, keepdim=True)
    given = torch.where(revived, total / shares.shape[1], shares)
    return given * (total / given.sum(1, keepdim=True).clamp_min(torch.finfo(given.dtype).tiny))
