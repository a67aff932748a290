"""Entropic optimal transport from vectors to weighted codes, in bounded memory.

M. Cuturi. *Sinkhorn Distances: Lightspeed Computation of Optimal Transport.* NeurIPS 2013.
A. Genevay, M. Cuturi, G. Peyré, F. Bach. *Stochastic Optimization for Large-Scale Optimal
Transport.* NeurIPS 2016.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spectok.quantizers import BLOCK_BYTES, sum_over_ranks

ANNEALED = 2 / 3  # of the iterations, in which epsilon falls to its final value
SMALLEST_SHARE = 1e-30  # of a code's mass; its logarithm is still finite


def transport_cost(
    z: Float[Tensor, "g s p d"],
    codes: Float[Tensor, "g k d"],
    log_weights: Float[Tensor, "g s k"],
    *,
    epsilon: float,
    num_iterations: int,
) -> Float[Tensor, "g s"]:
    """Return the entropic transport cost from vectors, of equal mass, to weighted codes.

    The cost of a unit of mass is the squared distance. With weights π the regularised cost is, in
    its dual form with one number φ_k per code (Genevay et al., Eq. S_ε),

        W = max_φ  Σ_k π_k φ_k - ε mean_z log Σ_k π_k exp((φ_k - |z - e_k|²) / ε)

    The gradient reaches vectors, codes and weights, at the φ found: at the maximum it is that of W.
    For any φ the value is a lower bound of W. All processes together hold one set of vectors; the
    value is this process's share of it, so that the mean over processes is the whole.

    Args:
        z: P vectors for each of S transports with each of G codebooks.
        codes: K codes for each of G codebooks.
        log_weights: Logarithms of each transport's weights, which sum to 1.
        epsilon: ε, in units of the mean squared difference between an entry of z and of a code.
        num_iterations: Iterations of :func:`potentials`.
    """
    found, width = potentials(
        z.detach(), codes.detach(), log_weights.detach(), epsilon, num_iterations
    )
    blocks = split(z, codes)
    total = torch.zeros_like(found[..., 0])
    for block in blocks:
        arguments = block, codes, log_weights, found, width
        if len(blocks) > 1:  # the scores are computed again in the backward pass
            total = total + checkpoint(_soft_minima, *arguments, use_reentrant=False)
        else:
            total = total + _soft_minima(*arguments)
    return total / z.shape[2] + (log_weights.exp() * found).sum(-1)


@torch.no_grad()
def potentials(
    z: Float[Tensor, "g s p d"],
    codes: Float[Tensor, "g k d"],
    log_weights: Float[Tensor, "g s k"],
    epsilon: float,
    num_iterations: int,
) -> tuple[Float[Tensor, "g s k"], Float[Tensor, "g s 1 1"]]:
    """Maximise the dual form over φ by Sinkhorn's iteration, in which ε falls to its value.

    With the present φ, a vector's mass goes to code k in the share π_k exp((φ_k - c_k) / ε),
    normalised over k. Each iteration raises φ_k by ε log(π_k / mass of code k).

    Returns:
        φ, and the final ε on the scale of squared distances.
    """
    dim, blocks = z.shape[-1], split(z, codes)
    mean_cost = _mean_cost(z, codes, log_weights)
    falling = max(1, math.ceil(ANNEALED * num_iterations) - 1)
    smallest, phi = epsilon / dim, torch.zeros_like(log_weights)
    for i in range(num_iterations):
        width = mean_cost * max(smallest, smallest ** (i / falling))  # (G, S, 1, 1)
        mass = torch.zeros_like(phi)
        for block in blocks:
            mass += _logits(block, codes, log_weights, phi, width).softmax(-1).sum(2)
        mass, count = sum_over_ranks(mass, mass.new_full((1,), float(z.shape[2])))
        share = (mass / count).clamp_min(SMALLEST_SHARE)
        phi = phi + width.squeeze(-1) * (log_weights - share.log())
    return phi, mean_cost * smallest


def split(
    z: Float[Tensor, "g s p d"], codes: Float[Tensor, "g k d"]
) -> tuple[Float[Tensor, "g s q d"], ...]:
    """Split vectors into blocks whose scores of all codes are held at once."""
    budget = BLOCK_BYTES.get(z.device.type, BLOCK_BYTES["cuda"])
    rows = max(1, budget // (4 * z.shape[0] * z.shape[1] * codes.shape[1]))
    return z.split(rows, dim=2)


def _logits(z: Tensor, codes: Tensor, log_weights: Tensor, phi: Tensor, width: Tensor) -> Tensor:
    """Return log π_k + (φ_k - |z - e_k|²) / ε for each vector, up to |z|² / ε: (G, S, P, K)."""
    transports, vectors = z.shape[1:3]
    norms = codes.square().sum(-1).unsqueeze(1)  # (G, 1, K)
    flat = rearrange(z, "g s p d -> g (s p) d")
    scores = torch.baddbmm(norms, flat, codes.transpose(1, 2), beta=-1, alpha=2)
    scores = scores.view(-1, transports, vectors, codes.shape[1])
    return log_weights.unsqueeze(2) + (phi.unsqueeze(2) + scores) / width


def _soft_minima(
    z: Tensor, codes: Tensor, log_weights: Tensor, phi: Tensor, width: Tensor
) -> Float[Tensor, "g s"]:
    """Return -ε log Σ_k π_k exp((φ_k - |z - e_k|²) / ε), summed over the vectors."""
    shared = _logits(z, codes, log_weights, phi, width).logsumexp(-1, keepdim=True)
    return z.square().sum((2, 3)) - (width * shared).sum((2, 3))


def _mean_cost(z: Tensor, codes: Tensor, log_weights: Tensor) -> Float[Tensor, "g s 1 1"]:
    """Return the mean squared distance, were every vector's mass spread over all codes."""
    totals = z.sum(2), z.square().sum((2, 3)), z.new_full((1,), float(z.shape[2]))
    sums = [part.reshape(-1) for part in totals]
    flat = sum_over_ranks(torch.cat(sums))[0].split([len(part) for part in sums])
    mean, square = flat[0].view_as(totals[0]) / flat[2], flat[1].view_as(totals[1]) / flat[2]
    weights = log_weights.exp()
    mean_code = weights @ codes  # (G, S, D)
    mean_norm = (weights * codes.square().sum(-1).unsqueeze(1)).sum(-1)
    cost = square + mean_norm - 2 * (mean * mean_code).sum(-1)
    return cost.clamp_min(torch.finfo(cost.dtype).tiny)[..., None, None]
