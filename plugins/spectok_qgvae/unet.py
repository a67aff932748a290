"""The U-Net of QG-VAE: residual blocks that see the input again at every level.

No skip connections lead from the way down to the way up. Instead, each residual block adds a
projection of the network's input and of a positional code, resized to its level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spectok.tokenizer import check_divisible

NUM_FREQUENCIES = 16
MAX_GROUPS = 16
SMALLEST_MAP = 8


def positional_code(size: int) -> Float[Tensor, "1 c size size"]:
    """Return sines and cosines of both coordinates at frequencies 2^0 … 2^15, 64 channels."""
    coordinate = torch.arange(size) / size
    angles = 2.0 ** torch.arange(NUM_FREQUENCIES)[:, None] * coordinate  # (16, size)
    waves = torch.cat([angles.sin(), angles.cos()])  # (32, size)
    across = waves[:, None, :].expand(-1, size, -1)
    down = waves[:, :, None].expand(-1, -1, size)
    return torch.cat([across, down]).unsqueeze(0)


class InputProjection(nn.Module):
    """A bias-free 1x1 convolution of the network's input and the positional code side by side.

    The code is the same for every image, so its part of the product is computed once per batch.

    Args:
        input_channels: Channels of the network's input.
        out_channels: Channels out.
    """

    def __init__(self, input_channels: int, out_channels: int):
        super().__init__()
        self.of_input = nn.Conv2d(input_channels, out_channels, 1, bias=False)
        self.of_position = nn.Conv2d(4 * NUM_FREQUENCIES, out_channels, 1, bias=False)

    def forward(self, inputs: Tensor, position: Tensor) -> Tensor:
        """Return the projection, to be added to a block's input."""
        return self.of_input(inputs) + self.of_position(position)


class ConditionedBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, after the network's input is added in projected form.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        input_channels: Channels of the network's input, which the block sees again.
    """

    def __init__(self, in_channels: int, out_channels: int, input_channels: int):
        super().__init__()
        self.condition = InputProjection(input_channels, in_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.body = nn.Sequential(
            nn.GroupNorm(_groups(in_channels), in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.GroupNorm(_groups(out_channels), out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor, inputs: Tensor, position: Tensor) -> Tensor:
        """Apply the block; all three arguments have the same height and width."""
        x = x + self.condition(inputs, position)
        return self.shortcut(x) + self.body(x)


class Stage(nn.Module):
    """Conditioned blocks at one resolution, with a 3x3 convolution before or after them.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        input_channels: Channels of the network's input.
        num_blocks: Conditioned blocks; the first changes the width.
        convolution_first: Whether the 3x3 convolution comes before the blocks or after.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_channels: int,
        num_blocks: int,
        convolution_first: bool,
    ):
        super().__init__()
        channels = in_channels if convolution_first else out_channels
        self.convolution_first = convolution_first
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ConditionedBlock(in_channels if i == 0 else out_channels, out_channels, input_channels)
            for i in range(num_blocks)
        )

    def forward(self, x: Tensor, inputs: Tensor, position: Tensor) -> Tensor:
        """Apply the stage."""
        if self.convolution_first:
            x = self.convolution(x)
        for block in self.blocks:
            x = block(x, inputs, position)
        return x if self.convolution_first else self.convolution(x)


class ConditionedUNet(nn.Module):
    """A U-Net between two resolutions, conditioned on its own input at every level.

    Level i works at ``size / 2^i``, the last at 8 pixels or just below. The way down starts at
    level ``start``, the way up ends at level ``end``.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        size: Resolution of level 0, in pixels.
        start: Level of the input: 0 for an encoder, f for a decoder.
        end: Level of the output: f for an encoder, 0 for a decoder.
        widths: Channels at the top of each level, then those at the bottom: one more than levels.
        num_blocks: Residual blocks per level, each way.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: int,
        start: int,
        end: int,
        widths: list[int],
        num_blocks: int,
    ):
        super().__init__()
        self.start, self.end, self.num_levels = start, end, len(widths) - 1
        self.register_buffer("position", positional_code(size >> start), persistent=False)
        self.stem = nn.Conv2d(in_channels, widths[start], 3, padding=1)
        self.down = nn.ModuleDict()
        for i in range(start, self.num_levels):
            self.down[str(i)] = Stage(widths[i], widths[i + 1], in_channels, num_blocks, True)
        self.up = nn.ModuleDict()
        for i in reversed(range(end, self.num_levels)):
            width = out_channels if i == end else widths[i]
            self.up[str(i)] = Stage(widths[i + 1], width, in_channels, num_blocks, False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.head = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)

    position: Tensor

    @property
    def last_stage(self) -> Stage:
        """The last stage of the way up."""
        return self.up[str(self.end)]  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Map ``size / 2^start`` pixels to ``size / 2^end`` pixels."""
        levels = range(min(self.start, self.end), self.num_levels)
        seen = {
            i: (self._at_level(x, i), self._at_level(self.position.to(x.dtype), i)) for i in levels
        }
        features = self.stem(x)
        for i in range(self.start, self.num_levels):
            features = self.down[str(i)](features, *seen[i])
            if i + 1 < self.num_levels:
                features = _resize(features, 0.5)
        for i in reversed(range(self.end, self.num_levels)):
            features = self.up[str(i)](features, *seen[i])
            if i > self.end:
                features = _resize(features, 2)
        return self.head(features + _resize(self.shortcut(x), 2.0 ** (self.start - self.end)))

    def _at_level(self, inputs: Tensor, level: int) -> Tensor:
        """Resize to the resolution of a level, by the nearest pixel."""
        if level < self.start:
            return F.interpolate(inputs, scale_factor=2.0 ** (self.start - level), mode="nearest")
        stride = 2 ** (level - self.start)
        return inputs[:, :, ::stride, ::stride]


def num_levels(size: int, factor_levels: int) -> int:
    """Return how many levels lead down to 8 pixels or fewer: at least one more than f.

    Raises:
        InputError: If the size cannot be halved that often.
    """
    levels = 1
    while size >> (levels - 1) > SMALLEST_MAP:
        levels += 1
    levels = max(levels, factor_levels + 1)
    check_divisible(size, 2 ** (levels - 1))
    return levels


def _groups(channels: int) -> int:
    return max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0)


def _resize(x: Tensor, scale: float) -> Tensor:
    """Resize by a power of two: by means of pixels on the way down, bilinearly on the way up."""
    if scale < 1:  # by one half this equals bilinear resizing and is several times faster
        return F.avg_pool2d(x, round(1 / scale))
    if scale == 1:
        return x
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
