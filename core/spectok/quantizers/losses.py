"""The straight-through gradient, and the two loss terms of vector quantisation."""

from __future__ import annotations

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward the codes bit for bit; send their gradient to the encoder."""

    @staticmethod
    def forward(ctx, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Return exactly ``z_q``, with the gradient of ``z`` (van den Oord et al. 2017, section 3.2).

    The usual ``z + (z_q - z).detach()`` rounds, so training would decode slightly different vectors
    from those of ``decode(indices)``.
    """
    return _StraightThrough.apply(z, z_q)  # type: ignore[return-value]


def codebook_losses(
    z: Tensor, z_q: Tensor, *, codebook_weight: float, commitment_weight: float
) -> dict[str, Tensor]:
    """Return the weighted codebook and commitment terms (van den Oord et al. 2017, Eq. 3).

    Args:
        z: Encoder vectors.
        z_q: Their codes, with gradient to the codebook.
        codebook_weight: Weight of ``|sg[z] - z_q|^2``, which moves the codes; 0 leaves it out.
        commitment_weight: Weight of ``|z - sg[z_q]|^2``, which moves the encoder.
    """
    losses = {"commitment": commitment_weight * (z - z_q.detach()).square().mean()}
    if codebook_weight:
        losses["codebook"] = codebook_weight * (z.detach() - z_q).square().mean()
    return losses
