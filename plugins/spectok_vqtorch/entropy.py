"""How evenly binary codes are used, without ever listing all codes for every vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from spectok.quantizers import sum_over_ranks, world

SMALLEST = 1e-12


def entropy_per_vector(logits: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
    """Return the mean entropy, in nats, of the code given a vector.

    The d bits of a code are independent given the vector, so it is the sum of their entropies
    (Yu et al. 2024, MAGVIT-v2, section 3.1).

    Args:
        logits: Logit of each bit being set.
    """
    bits = F.softplus(logits) - logits * logits.sigmoid()
    return bits.sum(-1).mean()


def entropy_of_mean(logits: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
    """Return the entropy, in nats, of the codes of all vectors of all ranks together.

    The mean over vectors of a product over bits does not factorise, but it is one matrix product:
    with ``a_i`` the distribution of a vector's first bits and ``b_i`` that of the others, it is the
    mean of ``a_i b_iᵀ``. For K codes that takes ``2 √K`` numbers per vector instead of K.

    Args:
        logits: Logit of each bit being set.
    """
    half = logits.shape[1] // 2
    first, rest = joint(logits[:, :half]), joint(logits[:, half:])
    mean: Tensor = _MeanOverRanks.apply(first.T @ rest / len(logits))  # type: ignore[assignment]
    return -(mean * mean.clamp_min(SMALLEST).log()).sum()


def joint(logits: Float[Tensor, "p d"]) -> Float[Tensor, "p k"]:
    """Return the distribution of each vector over the 2^d values of d independent bits."""
    probabilities = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        pair = torch.stack([(-bit).sigmoid(), bit.sigmoid()], dim=1)  # (P, 2)
        probabilities = rearrange(
            probabilities.unsqueeze(2) * pair.unsqueeze(1), "p k two -> p (k two)"
        )
    return probabilities


class _MeanOverRanks(torch.autograd.Function):
    """The mean over all ranks, through which gradients flow back to all of them."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor)[0] / world()[1]

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return sum_over_ranks(grads[0])[0] / world()[1]
