"""Exact nearest-code search with bounded memory.

``argmin_k |z - e_k|^2 = argmin_k (|e_k|^2 - 2 z.e_k)``: one matrix product with the squared code
norms added, without square root or ``|z|^2``, and never the whole N x K distance matrix at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok.device import exact_products

DISTANCE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # of scores that a gradient goes through


@torch.no_grad()
def nearest_codes(
    z: Float[Tensor, "g p d"], codebooks: Float[Tensor, "g k d"], *, max_bytes: int | None = None
) -> Int[Tensor, "g p"]:
    """Find, for each vector, the nearest code of its group's codebook (squared L2).

    Runs in float32 whatever the autocast, and without TF32. Ties go to the smaller index.

    Args:
        z: P vectors for each of G groups.
        codebooks: K codes for each of G groups.
        max_bytes: Largest block of distances held at once; by default 2 MiB on a CPU, so that a
            block stays in cache, and 256 MiB on a GPU.

    Returns:
        int64 indices in 0..K-1.
    """
    num_groups, num_vectors, _ = z.shape
    num_codes = codebooks.shape[1]
    budget = max_bytes or DISTANCE_BYTES.get(z.device.type, DISTANCE_BYTES["cuda"])
    with torch.autocast(z.device.type, enabled=False), exact_products():
        z, codebooks = z.float(), codebooks.float()
        norms = codebooks.square().sum(-1)  # (G, K)
        indices = torch.empty(num_groups, num_vectors, dtype=torch.int64, device=z.device)
        rows = max(1, budget // (4 * num_codes))
        groups = max(1, rows // max(1, num_vectors))
        for g in range(0, num_groups, groups):
            group = slice(g, g + groups)
            keys, bias = codebooks[group].transpose(1, 2), norms[group].unsqueeze(1)
            for p in range(0, num_vectors, rows):
                block = slice(p, p + rows)
                distances = torch.baddbmm(bias, z[group, block], keys, alpha=-2)  # (g, p, K)
                indices[group, block] = distances.argmin(-1)
    return indices
