"""Nearest child under a known parent: each vector is compared with the codes of its parent only.

Vectors are sorted by parent and cut into blocks of equal length, each with one parent, and many
blocks are searched in one batched product. A parent's codes are read once per block of vectors, no
tensor of size vectors x codes x dim is made, and the number of operations does not grow with the
number of parents. Where all parents together have few codes, each vector is compared with all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.device import exact_products
from spectok.quantizers import DISTANCE_BYTES, count_rows, nearest_codes

FEW_CODES = 64  # of all parents together: below, sorting costs more than it saves
BLOCK = 32  # vectors in a block: on average half a block per parent is padding


@torch.no_grad()
def nearest_children(
    z: Float[Tensor, "p d"],
    parents: Int[Tensor, "p"],
    codebooks: Float[Tensor, "g m d"],
    origins: Float[Tensor, "g d"],
) -> Int[Tensor, "p"]:
    """Find, for each vector, the nearest code of its parent's codebook (Eq. 3, squared L2).

    Runs in float32 whatever the autocast, and without TF32. Ties go to the smaller index.

    Args:
        z: P vectors.
        parents: Which of the G codebooks each vector is searched in.
        codebooks: M codes for each of G parents, relative to the parent.
        origins: Position of each parent, subtracted from its vectors.

    Returns:
        int64 indices in 0..M-1.
    """
    with torch.autocast(z.device.type, enabled=False), exact_products():
        z, codebooks, origins = z.float(), codebooks.float(), origins.float()
        if len(codebooks) == 1:
            return nearest_codes(z.unsqueeze(0), codebooks + origins)[0]
        if codebooks.shape[0] * codebooks.shape[1] <= FEW_CODES:
            return search_all(z, parents, codebooks, origins)
        return search_blocks(z, parents, codebooks, origins, exact_count=z.device.type == "cpu")


def search_all(z: Tensor, parents: Tensor, codebooks: Tensor, origins: Tensor) -> Tensor:
    """Compare each vector with the codes of all parents; see :func:`nearest_children`."""
    codes = codebooks.flatten(0, 1)
    # |z - o - c|² less what is the same for all children of one parent
    bias = codes.square().sum(-1) + 2 * (codebooks * origins.unsqueeze(1)).sum(-1).flatten()
    distances = torch.addmm(bias, z, codes.T, alpha=-2).view(-1, *codebooks.shape[:2])
    return distances[torch.arange(len(z), device=z.device), parents].argmin(-1)


def search_blocks(
    z: Tensor, parents: Tensor, codebooks: Tensor, origins: Tensor, *, exact_count: bool
) -> Tensor:
    """Search many blocks of vectors at once, each with one parent; see :func:`nearest_children`.

    Args:
        z: P vectors.
        parents: The codebook of each.
        codebooks: M codes for each parent.
        origins: Position of each parent.
        exact_count: Whether to read the exact number of blocks, which would wait for an
            accelerator, or use an upper bound that depends on shapes alone.
    """
    num_codes, dim = codebooks.shape[1:]
    owners, slots, order = _lay_out(parents, len(codebooks), exact_count)
    rows = slots.new_zeros(len(owners) * BLOCK).index_copy_(0, slots, order)  # padding: vector 0
    norms = codebooks.square().sum(-1).unsqueeze(1)  # (G, 1, M)
    budget = DISTANCE_BYTES.get(z.device.type, DISTANCE_BYTES["cuda"])
    budget //= 2  # the other half of a CPU's cache holds the codes and vectors being read
    blocks = max(1, budget // (4 * (BLOCK * dim + num_codes * (dim + BLOCK))))
    nearest = rows.new_empty(len(owners), BLOCK)
    # One buffer for all products: fresh memory costs a CPU more than the gathering itself.
    buffer = z.new_empty(min(blocks, len(owners)) * BLOCK, dim)
    for own, row, found in zip(
        owners.split(blocks), rows.split(blocks * BLOCK), nearest.split(blocks)
    ):
        residuals = torch.index_select(z, 0, row, out=buffer[: len(row)]).view(-1, BLOCK, dim)
        residuals -= origins.index_select(0, own).unsqueeze(1)
        keys = codebooks.index_select(0, own).transpose(1, 2)  # (blocks, D, M)
        distances = torch.baddbmm(norms.index_select(0, own), residuals, keys, alpha=-2)
        torch.argmin(distances, -1, out=found)
    children = nearest.flatten().index_select(0, slots)
    return torch.empty_like(parents).index_copy_(0, order, children)


def _lay_out(
    parents: Tensor, num_parents: int, exact_count: bool
) -> tuple[Int[Tensor, "blocks"], Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Return each block's parent, the sorted vectors' slots in the blocks, and their order."""
    order = parents.argsort()
    counts = count_rows(parents, num_parents)
    ends = (counts + BLOCK - 1).div(BLOCK, rounding_mode="floor").cumsum(0)  # in blocks
    bound = len(parents) // BLOCK + min(len(parents), num_parents)
    num_blocks = int(ends[-1]) if exact_count else bound
    block = torch.arange(num_blocks, device=parents.device)
    owners = torch.searchsorted(ends, block, right=True).clamp_max(num_parents - 1)
    first_block = torch.cat([ends.new_zeros(1), ends[:-1]])
    shift = first_block * BLOCK - (counts.cumsum(0) - counts)
    place = torch.arange(len(parents), device=parents.device)
    return owners, place + shift.index_select(0, parents.index_select(0, order)), order
