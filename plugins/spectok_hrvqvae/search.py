"""Nearest child under a known parent: each vector is compared with the codes of its parent only.

Vectors are sorted by parent and multiplied group by group, so that a parent's codes are read once
for all its vectors and nothing of size vectors x codes x dim is made. On a CPU each group is one
small product, whose vectors stay in the cache; on an accelerator, where launching hundreds of them
would cost more than the work, groups are cut into blocks of equal length and all blocks are one
batched product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.search import DISTANCE_BYTES, nearest_codes

BLOCK = 32  # vectors in a block: half a block per parent is padding


@torch.no_grad()
def nearest_children(
    z: Float[Tensor, "p d"],
    parents: Int[Tensor, "p"],
    codebooks: Float[Tensor, "g m d"],
    origins: Float[Tensor, "g d"],
) -> Int[Tensor, "p"]:
    """Find, for each vector, the nearest code of its parent's codebook (Eq. 3, squared L2).

    Runs in float32 whatever the autocast. Ties go to the smaller index.

    Args:
        z: P vectors.
        parents: Which of the G codebooks each vector is searched in.
        codebooks: M codes for each of G parents, relative to the parent.
        origins: Where each parent is: subtracted from its vectors.

    Returns:
        int64 indices in 0..M-1.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, codebooks, origins = z.float(), codebooks.float(), origins.float()
        if len(codebooks) == 1:
            return nearest_codes(z.unsqueeze(0), codebooks + origins)[0]
        search = search_groups if z.device.type == "cpu" else search_blocks
        return search(z, parents, codebooks, origins)


def search_groups(z: Tensor, parents: Tensor, codebooks: Tensor, origins: Tensor) -> Tensor:
    """Take one group after the other; see :func:`nearest_children`."""
    order = parents.argsort(stable=True)
    sizes = torch.bincount(parents, minlength=len(codebooks)).tolist()
    rows_at_once = max(1, DISTANCE_BYTES["cpu"] // (4 * codebooks.shape[1]))
    groups = z.index_select(0, order).split(sizes)
    keys, norms = codebooks.transpose(1, 2).unbind(), codebooks.square().sum(-1).unbind()
    nearest = [parents[:0]]
    for group, key, norm, origin in zip(groups, keys, norms, origins.unbind()):
        for part in group.split(rows_at_once) if len(group) else ():
            residuals = part.sub_(origin)  # in the copy above: no memory to fetch for each group
            nearest.append(torch.addmm(norm, residuals, key, alpha=-2).argmin(-1))
    return torch.empty_like(parents).index_copy_(0, order, torch.cat(nearest))


def search_blocks(z: Tensor, parents: Tensor, codebooks: Tensor, origins: Tensor) -> Tensor:
    """Take blocks of vectors of one parent, all at once; see :func:`nearest_children`.

    The number of blocks is an upper bound that depends on shapes alone: reading the true number
    would wait for the device.
    """
    order = parents.argsort(stable=True)
    counts = torch.bincount(parents, minlength=len(codebooks))
    ends = (counts + BLOCK - 1).div(BLOCK, rounding_mode="floor").cumsum(0)
    num_blocks = len(z) // BLOCK + min(len(z), len(codebooks))
    owners = torch.searchsorted(ends, torch.arange(num_blocks, device=z.device), right=True)
    owners = owners.clamp_max(len(codebooks) - 1)
    slots = _slots(parents[order], counts, ends)
    residuals = z[order] - origins[parents[order]]
    padded = z.new_zeros(num_blocks * BLOCK, z.shape[1]).index_copy_(0, slots, residuals)
    norms = codebooks.square().sum(-1, keepdim=True).transpose(1, 2)  # (G, 1, M)
    _, num_codes, dim = codebooks.shape
    blocks_at_once = max(1, DISTANCE_BYTES["cuda"] // (4 * num_codes * (BLOCK + dim)))
    nearest = [
        torch.baddbmm(norms[own], blocks, codebooks[own].transpose(1, 2), alpha=-2).argmin(-1)
        for own, blocks in zip(
            owners.split(blocks_at_once), padded.view(-1, BLOCK, dim).split(blocks_at_once)
        )
    ]  # (blocks, BLOCK) each
    found = torch.cat(nearest).flatten()[slots]
    return torch.empty_like(parents).index_copy_(0, order, found)


def _slots(parents: Tensor, counts: Tensor, ends: Tensor) -> Tensor:
    """Place each vector, sorted by parent, in the blocks of its parent; ``ends`` counts blocks."""
    first_vector = counts.cumsum(0) - counts
    first_block = torch.cat([ends.new_zeros(1), ends[:-1]])
    rank = torch.arange(len(parents), device=parents.device) - first_vector[parents]
    return first_block[parents] * BLOCK + rank
