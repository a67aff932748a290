"""The tree of codebooks as plain tensors: its shape, node numbers and descent.

Level i of a tree with branching ``(m_0, m_1, …)`` has ``m_0 … m_i`` nodes, each with one code.
Child k of node p has the number ``p * m_i + k``, so a leaf's number encodes its whole path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import InputError
from spectok.quantizers import count_rows
from spectok_hrvqvae.search import nearest_children

DEFAULT_LEVELS = 3


def resolve_branching(
    codebook_size: int, branching: int | Sequence[int] | None, num_levels: int | None
) -> tuple[int, ...]:
    """Return the number of children per level; their product is the number of leaves.

    Without ``branching``, these are the factors of ``codebook_size`` with the smallest sum, which
    is the number of codes a vector is compared with: 512 over 3 levels gives 8, 8, 8.

    Raises:
        InputError: If the numbers do not multiply to ``codebook_size``.
    """
    if branching is None:
        return equal_factors(codebook_size, num_levels or DEFAULT_LEVELS)
    if isinstance(branching, int):
        branching = (branching,) * (num_levels or DEFAULT_LEVELS)
    if num_levels not in (None, len(branching)):
        raise InputError(
            f"num_levels {num_levels} is not the length of branching {list(branching)}; "
            f"leave num_levels out"
        )
    if math.prod(branching) != codebook_size or min(branching) < 2:
        raise InputError(
            f"branching {list(branching)} makes {math.prod(branching)} leaves, and codebook_size "
            f"is {codebook_size}: numbers above 1 must multiply to it; leave branching out to have "
            f"them chosen"
        )
    return tuple(branching)


def equal_factors(number: int, count: int) -> tuple[int, ...]:
    """Split a number into ``count`` factors above 1 of smallest sum, the largest first.

    Raises:
        InputError: If there are none; suggests a number near it that has some.
    """
    found = list(_factorisations(number, count, number))
    if not found:
        base = max(2, round(number ** (1 / count)))
        raise InputError(
            f"codebook_size {number} is not a product of {count} whole numbers above 1; choose "
            f"e.g. {base**count}, another num_levels, or branching"
        )
    return min(found, key=lambda factors: (sum(factors), factors))


def _factorisations(number: int, count: int, largest: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        if 1 < number <= largest:
            yield (number,)
        return
    for first in range(2, min(number, largest) + 1):
        if number % first == 0:
            for rest in _factorisations(number // first, count - 1, first):
                yield (first, *rest)


def nodes_of(indices: Int[Tensor, "*p l"], branching: Sequence[int]) -> list[Int[Tensor, "*p"]]:
    """Return, for each of l levels, the number of the node that the indices so far reach."""
    nodes: list[Tensor] = []
    for index, m in zip(indices.unbind(-1), branching):
        nodes.append(nodes[-1] * m + index if nodes else index)
    return nodes


def path_of(leaves: Int[Tensor, "*p"], branching: Sequence[int]) -> Int[Tensor, "*p l"]:
    """Return the index at each level on the path to a leaf: the inverse of :func:`nodes_of`."""
    indices: list[Tensor] = []
    for m in reversed(branching):
        indices.append(leaves % m)
        leaves = leaves.div(m, rounding_mode="floor")
    return torch.stack(indices[::-1], dim=-1)


@torch.no_grad()
def descend(
    z: Float[Tensor, "p d"], codebooks: Sequence[Float[Tensor, "_ d"]], branching: Sequence[int]
) -> tuple[Int[Tensor, "p l"], Int[Tensor, "p"]]:
    """Descend the tree to the nearest child at each level (Eq. 3).

    Args:
        z: Vectors.
        codebooks: Codes of each level, by node.
        branching: Children per level.

    Returns:
        The index at each level, and the leaf reached.
    """
    node = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    indices: list[Tensor] = []
    origins = partial_sums(z.new_zeros(1, z.shape[1]), codebooks[:-1], branching)
    for codes, m, origin in zip(codebooks, branching, origins, strict=True):
        indices.append(nearest_children(z, node, codes.view(-1, m, z.shape[1]), origin))
        node = node * m + indices[-1]
    return torch.stack(indices, dim=1), node


def partial_sums(
    root: Float[Tensor, "1 d"],
    codebooks: Sequence[Float[Tensor, "_ d"]],
    branching: Sequence[int],
) -> list[Float[Tensor, "_ d"]]:
    """Return the root and, for each level, the sum of codes on the path to each node (Eq. 4)."""
    sums = [root]
    for codes, m in zip(codebooks, branching):
        sums.append(sums[-1].repeat_interleave(m, dim=0) + codes)
    return sums


def members(
    parents: Int[Tensor, "p"], num_parents: int, count: int
) -> tuple[Int[Tensor, "g count"], Int[Tensor, "g"]]:
    """List the first ``count`` vectors of each parent, repeating them where it has fewer.

    Returns:
        Rows of the vectors, arbitrary for a parent without any, and how many each parent has.
    """
    held = count_rows(parents, num_parents)
    order = parents.argsort(stable=True)
    start = (held.cumsum(0) - held).unsqueeze(1)
    turn = torch.arange(count, device=parents.device) % held.clamp_min(1).unsqueeze(1)
    return order[(start + turn).clamp_max(len(parents) - 1)], held
