"""Focal frequency loss.

L. Jiang, B. Dai, W. Wu, C. C. Loy. *Focal Frequency Loss for Image Reconstruction and Synthesis.*
ICCV 2021.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def focal_frequency(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], alpha: float = 1.0
) -> Float[Tensor, ""]:
    """Return the squared distance of spectra, weighted by how far each frequency is off (Eq. 8-10).

    The weight of a frequency is its distance to the power ``alpha``, divided by the largest of its
    image and channel; no gradient passes through it. That is what the released code does, with
    which FA-VAE was trained; FA-VAE's Eq. 6 shows the weight neither divided nor detached.

    Spectra are orthonormal, and computed in float32 even under autocast.

    Args:
        prediction: Images or features.
        target: What they should be.
        alpha: How strongly the loss favours frequencies that are far off; 0 weighs all equally.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        difference = prediction.float() - target.float()
        spectrum = torch.fft.fft2(difference, norm="ortho")
        distance = spectrum.real.square() + spectrum.imag.square()  # (b, c, h, w)
        weight = distance.detach().sqrt() ** alpha
        largest = weight.amax((-2, -1), keepdim=True)
        # equal images have no distance to divide by, and their loss is 0 with any weight
        weight = weight / largest.clamp_min(torch.finfo(weight.dtype).tiny)
        return (weight * distance).mean()
