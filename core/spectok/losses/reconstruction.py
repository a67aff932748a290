"""Distances between pixels: means over everything, in float32 even under autocast.

Images are in [-1, 1]. On the [0, 1] scale of some papers L1 is half of this, L2 a quarter.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def l1(
    reconstruction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Return the mean absolute error."""
    return (reconstruction.float() - images.float()).abs().mean()


def l2(
    reconstruction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Return the mean squared error."""
    return (reconstruction.float() - images.float()).square().mean()
