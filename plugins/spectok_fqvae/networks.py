"""Encoders and decoders: a U-Net that sees the whole image, and a transformer on patches."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

MAX_GROUPS = 8
SMALLEST_MAP = 4  # pixels; the U-Net goes no deeper
HEAD_CHANNELS = 32  # of the transformer's attention


class NormBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, added to the input.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            *(_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the block."""
        return x + self.body(x)


class UNet(nn.Module):
    """A U-Net with added skip connections; input and output have one height and width.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        size: Height and width.
        channels: Channels at the top; they double with each halving of the size.
        max_channels: Largest number of channels.
        num_blocks: Blocks per level, each way.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: int,
        channels: int,
        max_channels: int,
        num_blocks: int,
    ):
        super().__init__()
        widths = [channels]
        while size % 2 == 0 and size > SMALLEST_MAP:
            size //= 2
            widths.append(min(2 * widths[-1], max(channels, max_channels)))
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList(_blocks(width, num_blocks) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 4, stride=2, padding=1) for a, b in pairs
        )
        self.up = nn.ModuleList(_blocks(width, num_blocks) for width in widths[:-1])
        self.head = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Apply the network."""
        x, skips = self.stem(x), []
        for blocks, shrink in zip(self.down, self.shrink):
            skips.append(blocks(x))
            x = shrink(skips[-1])
        x = self.down[-1](x)
        for blocks, grow, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips)):
            x = blocks(grow(x) + skip)
        return self.head(x)


class PatchTransformer(nn.Module):
    """A vision transformer over the positions of a grid, each with a learned embedding.

    Args:
        in_channels: Channels in, per position.
        out_channels: Channels out.
        size: Height and width of the grid.
        channels: Width; heads have 32 channels if 32 divides it, else one head has them all.
        num_blocks: Attention blocks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, size: int, channels: int, num_blocks: int
    ):
        super().__init__()
        self.size = size
        self.stem = nn.Linear(in_channels, channels)
        self.position = nn.Parameter(0.02 * torch.randn(size * size, channels))
        self.blocks = nn.Sequential(*(AttentionBlock(channels) for _ in range(num_blocks)))
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, out_channels))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Apply the network to positions in raster order."""
        tokens = rearrange(x, "b c h w -> b (h w) c")
        tokens = self.head(self.blocks(self.stem(tokens) + self.position))
        return rearrange(tokens, "b (h w) c -> b c h w", h=self.size)


class AttentionBlock(nn.Module):
    """Self-attention and a feed-forward layer four times as wide, each after a norm.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.num_heads = max(channels // HEAD_CHANNELS, 1) if channels % HEAD_CHANNELS == 0 else 1
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Apply the block."""
        qkv = self.qkv(self.attention_norm(x))
        query, key, value = rearrange(qkv, "b n (t h c) -> t b h n c", t=3, h=self.num_heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(rearrange(mixed, "b h n c -> b n (h c)"))
        return x + self.feed_forward(x)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NormBlock(channels) for _ in range(count)))


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
