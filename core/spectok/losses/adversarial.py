"""A discriminator's hinge losses, and the weight that keeps the generator's in proportion.

Logits have any shape: one per image, per patch or per pixel.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_RATIO = 1e4  # as in VQGAN: the weight must not explode where the generator's gradient vanishes


def hinge_discriminator(
    real: Float[Tensor, "*logits"], fake: Float[Tensor, "*logits"]
) -> Float[Tensor, ""]:
    """Return what a discriminator minimises: half its hinge losses on images and reconstructions.

    Lim and Ye, *Geometric GAN*, 2017; the factor is VQGAN's.
    """
    return 0.5 * ((1 - real.float()).relu().mean() + (1 + fake.float()).relu().mean())


def hinge_generator(fake: Float[Tensor, "*logits"]) -> Float[Tensor, ""]:
    """Return what a generator minimises: minus the mean logit of its reconstructions."""
    return -fake.float().mean()


def adaptive_weight(
    reference: Float[Tensor, "*weight"], generator: Float[Tensor, "*weight"], epsilon: float = 1e-4
) -> Float[Tensor, ""]:
    """Return the factor that gives the generator's gradient a reference's norm (Eq. 7 of VQGAN).

    It stays a tensor, so that no step waits for the device.

    Args:
        reference: Gradient of the reconstruction terms at the decoder's last layer.
        generator: Gradient of the generator's term there.
        epsilon: Added to the norm in the denominator; 1e-4 in VQGAN's code, 1e-6 in QG-VAE's.

    Returns:
        A scalar in [0, 10⁴], without gradient.
    """
    lengths = [torch.linalg.vector_norm(g.detach().float()) for g in (reference, generator)]
    ratio = lengths[0] / (lengths[1] + epsilon)
    return ratio.clamp(0, MAX_RATIO)
