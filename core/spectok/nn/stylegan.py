"""StyleGAN2's discriminator, for any tokenizer."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok.device import constant
from spectok.errors import InputError

SMALLEST_MAP = 4  # pixels
BLUR = (1.0, 3.0, 3.0, 1.0)


class StyleGAN2Discriminator(nn.Module):
    """One logit per image, through residual blocks: Karras et al. 2020, section 4.1.

        images (B, C, H, W)
          | from_image     1x1 convolution
        maps (B, D, H, W)
          | blocks         each halves the maps and doubles D, down to 4x4
        maps (B, D', 4, 4)
          | deviation      within a group of images, one more channel; only if group_size > 1
          | last           3x3 convolution, two linear layers
        logits (B, 1)

    All weights are drawn from N(0, 1) and scaled by their fan-in where they are used (equalised
    learning rate, Karras et al. 2018). Maps are halved by smoothing with the kernel 1-3-3-1 and
    keeping every second pixel.

    Args:
        image_shape: ``(C, H, W)`` of the images; square, 4 pixels times a power of two.
        channels: Channels D at full size; they double with each block, up to ``max_channels``.
        max_channels: Largest number of channels; 512 in the paper.
        group_size: Images per group whose standard deviation the last layers see; 4 in the paper.
            Above 1, results depend on how a batch is split.

    Raises:
        InputError: If the images are not square, or not 4 pixels times a power of two.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        channels: Annotated[int, Field(ge=1)] = 64,
        max_channels: Annotated[int, Field(ge=1)] = 512,
        group_size: Annotated[int, Field(ge=1)] = 1,
    ):
        super().__init__()
        in_channels, height, width = image_shape
        num_blocks = round(math.log2(max(height, SMALLEST_MAP) / SMALLEST_MAP))
        if height != width or height != SMALLEST_MAP * 2**num_blocks:
            raise InputError(
                f"images of {height}×{width} pixels do not fit stylegan2, which takes squares of "
                f"4, 8, 16, 32, … pixels; resize them or choose patchgan"
            )
        widths = [min(channels * 2**i, max_channels) for i in range(num_blocks + 1)]
        self.group_size = group_size
        self.from_image = ScaledConv(in_channels, widths[0], 1)
        self.blocks = nn.Sequential(*map(HalvingBlock, widths[:-1], widths[1:]))
        self.last = ScaledConv(widths[-1] + (group_size > 1), widths[-1], 3)
        # Linear layers are convolutions whose kernel is the whole map.
        self.hidden = ScaledConv(widths[-1], widths[-1], SMALLEST_MAP, padding=0)
        self.logit = ScaledConv(widths[-1], 1, 1)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1"]:
        """Return one logit per image."""
        x = self.blocks(activate(self.from_image(images)))
        if self.group_size > 1:
            x = torch.cat([x, group_deviation(x, self.group_size)], dim=1)
        x = activate(self.hidden(activate(self.last(x))))
        return self.logit(x).flatten(1)


class HalvingBlock(nn.Module):
    """Two 3x3 convolutions, the second of which halves the maps, and a shortcut.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.first = ScaledConv(in_channels, in_channels, 3)
        self.second = ScaledConv(in_channels, out_channels, 3)
        self.shortcut = ScaledConv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e h2 w2"]:
        """Halve the maps; the sum keeps the variance of its terms."""
        y = activate(self.second(halve(activate(self.first(x)))))
        return (y + self.shortcut(halve(x))) / math.sqrt(2)


class ScaledConv(nn.Conv2d):
    """A convolution whose weights are scaled by their fan-in where they are used.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        kernel: Side of the kernel.
        padding: Zeros on each side, in pixels. None: as many as keep the size.
        bias: Whether to add a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        padding: int | None = None,
        bias: bool = True,
    ):
        padding = kernel // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel, padding=padding, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.scale = 1 / math.sqrt(in_channels * kernel**2)

    def forward(self, input: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e h2 w2"]:
        """Convolve with the scaled weights."""
        return self._conv_forward(input, self.weight * self.scale, self.bias)


def activate(x: Tensor) -> Tensor:
    """LeakyReLU(0.2) with a gain that keeps the variance of its input."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def halve(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h2 w2"]:
    """Smooth with the kernel 1-3-3-1 and take every second pixel."""
    kernel = constant(BLUR, x.device).to(x.dtype) / sum(BLUR)
    weight = torch.outer(kernel, kernel).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def group_deviation(x: Float[Tensor, "b d h w"], size: int) -> Float[Tensor, "b 1 h w"]:
    """Return the standard deviation within groups of images, averaged to one constant map each.

    Args:
        x: Maps.
        size: Images per group; fewer if the batch is not a multiple of it.
    """
    batch, _, height, width = x.shape
    size = next(s for s in range(min(size, batch), 0, -1) if batch % s == 0)
    groups = x.float().reshape(size, batch // size, -1)
    variance = groups.var(0, correction=0)  # (groups, d*h*w)
    mean = (variance + 1e-8).sqrt().mean(1).repeat(size)  # (b,)
    return mean.to(x.dtype)[:, None, None, None].expand(-1, 1, height, width)
