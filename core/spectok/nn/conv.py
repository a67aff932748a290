"""The convolutional encoder and decoder of VQ-VAE (van den Oord et al. 2017, section 4.1)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import InputError


class ResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, added to the input.

    Args:
        channels: Channels in and out.
        hidden: Channels between the convolutions.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the block."""
        return x + self.body(x)


class ConvEncoder(nn.Sequential):
    """Strided 4x4 convolutions, one 3x3 convolution, residual blocks, 1x1 convolution.

    Args:
        in_channels: Image channels.
        out_channels: Latent channels.
        channels: Hidden channels.
        num_blocks: Residual blocks.
        residual_channels: Hidden channels of a residual block.
        downsample_factor: Power of two by which height and width shrink.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int,
        num_blocks: int,
        residual_channels: int,
        downsample_factor: int,
    ):
        strides = _num_halvings(downsample_factor)
        layers: list[nn.Module] = []
        width = in_channels
        for i in range(strides):
            following = channels if i == strides - 1 else channels // 2
            layers += [nn.Conv2d(width, following, 4, stride=2, padding=1), nn.ReLU()]
            width = following
        layers.append(nn.Conv2d(width, channels, 3, padding=1))
        layers += [ResidualBlock(channels, residual_channels) for _ in range(num_blocks)]
        layers += [nn.ReLU(), nn.Conv2d(channels, out_channels, 1)]
        super().__init__(*layers)


class ConvDecoder(nn.Sequential):
    """The encoder's mirror: 3x3 convolution, residual blocks, transposed 4x4 convolutions.

    Args:
        in_channels: Latent channels.
        out_channels: Image channels.
        channels: Hidden channels.
        num_blocks: Residual blocks.
        residual_channels: Hidden channels of a residual block.
        downsample_factor: Power of two by which height and width grow.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int,
        num_blocks: int,
        residual_channels: int,
        downsample_factor: int,
    ):
        strides = _num_halvings(downsample_factor)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1)]
        layers += [ResidualBlock(channels, residual_channels) for _ in range(num_blocks)]
        width = channels
        for i in range(strides):
            following = out_channels if i == strides - 1 else channels // 2
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, following, 4, stride=2, padding=1)]
            width = following
        if strides == 0:
            layers += [nn.ReLU(), nn.Conv2d(channels, out_channels, 3, padding=1)]
        super().__init__(*layers)


def _num_halvings(downsample_factor: int) -> int:
    halvings = int(math.log2(downsample_factor)) if downsample_factor > 0 else -1
    if 2**halvings != downsample_factor:
        raise InputError(f"downsample_factor {downsample_factor} is not a power of two, e.g. 4")
    return halvings
