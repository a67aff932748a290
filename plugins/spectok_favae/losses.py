"""Spectrum loss and dynamic spectrum loss (section 3.1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spectok.losses import focal_frequency

SpectrumKind = Literal["none", "ffl", "sl", "dsl"]

SMALLEST_SIGMA = 0.1  # pixels; a narrower Gaussian is a delta in float32


class SpectrumLoss(nn.Module):
    """Mean focal frequency loss of pairs of feature maps, both blurred by a Gaussian (Eq. 7, 8).

    The two maps of a pair share one Gaussian, or, with ``pairwise`` off, have one each.

    Args:
        kind: ``"ffl"``: no blur. ``"sl"``: Gaussians of a fixed width. ``"dsl"``: learned widths.
        num_pairs: Pairs of feature maps.
        kernel_size: Side of the kernel, in pixels: the paper's mu. Odd.
        sigma: Width of the Gaussians, in pixels, above 0.1; with ``"dsl"`` the initial one.
        pairwise: Whether the two maps of a pair share one width.
        learning_rate: Peak learning rate of the widths. None: that of the other parameters.

    Attributes:
        own_learning_rate: See :func:`spectok.training.optimizer.make_optimizer`.
    """

    def __init__(
        self,
        kind: Literal["ffl", "sl", "dsl"],
        num_pairs: int,
        *,
        kernel_size: int,
        sigma: float,
        pairwise: bool,
        learning_rate: float | None,
    ):
        super().__init__()
        self.kind, self.num_pairs, self.kernel_size = kind, num_pairs, kernel_size
        self.own_learning_rate = learning_rate
        raw = torch.full((num_pairs * (1 if pairwise else 2),), _inverse_softplus(sigma))
        if kind == "dsl":
            self.raw_sigma = nn.Parameter(raw)  # one dimension: without weight decay
        elif kind == "sl":
            self.register_buffer("raw_sigma", raw)

    raw_sigma: Tensor

    @property
    def sigma(self) -> Float[Tensor, "two pairs"]:
        """Widths in pixels: of the encoder's maps, then of the decoder's."""
        widths = F.softplus(self.raw_sigma.float()) + SMALLEST_SIGMA
        return widths.view(-1, self.num_pairs).expand(2, -1)

    def forward(self, activations: Sequence[Tensor], complements: Sequence[Tensor]) -> Tensor:
        """Return the mean over the pairs, a scalar.

        Args:
            activations: The encoder's maps A_i, each (B, C, H, W).
            complements: The decoder's maps C_i, of the same shapes.
        """
        targets, outputs = list(activations), list(complements)
        if self.kind != "ffl":
            of_encoder, of_decoder = self.sigma.unbind(0)
            targets, outputs = self.blur(targets, of_encoder), self.blur(outputs, of_decoder)
        terms = [focal_frequency(output, target) for output, target in zip(outputs, targets)]
        return torch.stack(terms).mean()

    def blur(self, maps: list[Tensor], sigmas: Float[Tensor, "pairs"]) -> list[Tensor]:
        """Convolve each map with its Gaussian, in float32 (Eq. 7)."""
        with torch.autocast(sigmas.device.type, enabled=False):
            kernels = [gaussian(sigma, self.kernel_size) for sigma in sigmas]
            return [convolve(x.float(), kernel) for x, kernel in zip(maps, kernels)]


def gaussian(sigma: Float[Tensor, ""], size: int) -> Float[Tensor, "size"]:
    """Return a sampled Gaussian of mean 0 that sums to one."""
    place = torch.arange(size, device=sigma.device) - size // 2
    return torch.softmax(-(place**2) / (2 * sigma**2), dim=0)


def convolve(x: Float[Tensor, "b c h w"], kernel: Float[Tensor, "k"]) -> Float[Tensor, "b c h w"]:
    """Convolve down and across with one kernel; the map is reflected at its border."""
    margin, channels = len(kernel) // 2, x.shape[1]
    padded = F.pad(x, (margin,) * 4, mode="reflect")
    # one group per channel: with channels in the batch the backward pass is 20 times slower
    weight = kernel.expand(channels, 1, -1)
    down = F.conv2d(padded, weight.unsqueeze(-1), groups=channels)
    return F.conv2d(down, weight.unsqueeze(-2), groups=channels)


def _inverse_softplus(sigma: float) -> float:
    return math.log(math.expm1(sigma - SMALLEST_SIGMA))
