"""The convolutional encoder and decoder of VQGAN.

P. Esser, R. Rombach, B. Ommer. *Taming Transformers for High-Resolution Image Synthesis.* CVPR
2021. Each network is a chain of four stages; a model may look at what passes between two stages, or
change it::

    images -stem-> -down-> -mid-> -head-> latents
    latents -stem-> -mid-> -up-> -head-> images
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import InputError

MAX_GROUPS = 32
CHANNELS_PER_GROUP = 4


def group_norm(channels: int) -> nn.GroupNorm:
    """Return VQGAN's norm: 32 groups, or fewer where 32 would leave under 4 channels each."""
    limit = min(MAX_GROUPS, max(1, channels // CHANNELS_PER_GROUP))
    groups = max(n for n in range(1, limit + 1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def residual_branch(in_channels: int, out_channels: int, dropout: float = 0.0) -> nn.Sequential:
    """Return norm, SiLU, 3x3 convolution, twice over: a residual block without its shortcut."""
    return nn.Sequential(
        group_norm(in_channels),
        nn.SiLU(),
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        group_norm(out_channels),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
    )


class ResidualBlock(nn.Module):
    """A residual branch added to its input, which a 1x1 convolution brings to another width.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.branch = residual_branch(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """Apply the block."""
        return self.shortcut(x) + self.branch(x)


class PixelAttention(nn.Module):
    """Self-attention between all pixels, with one head, added to its input.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Let every pixel attend to all others."""
        qkv = rearrange(self.to_qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))  # (b, 1, h*w, c)
        return x + self.to_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve height and width by a strided 3x3 convolution, padded on the right and at the bottom.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        """Halve."""
        return self.convolution(F.pad(x, (0, 1, 0, 1)))


class VQGANEncoder(nn.Module):
    """Images to latents.

        images
          | stem   3x3 convolution
          | down   per level residual blocks, attention at some sizes; halved between levels
          | mid    residual block, attention, residual block
          | head   norm, SiLU, 3x3 convolution to z_channels, 1x1 to latent_channels
        latents

    The 1x1 convolution is VQGAN's ``quant_conv``.

    Args:
        in_channels: Image channels.
        latent_channels: Latent channels: VQGAN's ``embed_dim``.
        image_size: Height and width of the images.
        channels: Channels of the first level.
        channel_multipliers: Channels of each level, as multiples of ``channels``; L levels halve
            L-1 times.
        num_blocks: Residual blocks per level.
        attention_sizes: Heights of feature maps at which attention follows each residual block.
        z_channels: Channels between the 3x3 and the 1x1 convolution. None: ``latent_channels``.
        middle_attention: Whether the middle attends.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        *,
        image_size: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_blocks: int,
        attention_sizes: Sequence[int],
        z_channels: int | None = None,
        middle_attention: bool = True,
    ):
        super().__init__()
        z_channels = _check_width(z_channels, latent_channels)
        widths = [channels * multiplier for multiplier in channel_multipliers]
        levels: list[nn.Module] = []
        for i, (before, width) in enumerate(zip([channels, *widths], widths)):
            if i:
                levels.append(Downsample(before))
            levels += _level(before, width, num_blocks, (image_size >> i) in attention_sizes)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down = nn.Sequential(*levels)
        self.mid = _middle(widths[-1], middle_attention)
        self.head = nn.Sequential(
            group_norm(widths[-1]),
            nn.SiLU(),
            nn.Conv2d(widths[-1], z_channels, 3, padding=1),
            nn.Conv2d(z_channels, latent_channels, 1),
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l _ _"]:
        """Encode."""
        return self.stages(images)[-1]

    def stages(self, images: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Encode, and return the output of each of the four stages; the last is the latents."""
        outputs = [images]
        for stage in (self.stem, self.down, self.mid, self.head):
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


class VQGANDecoder(nn.Module):
    """Latents to images: the encoder's mirror, with one more residual block per level.

        latents
          | stem   1x1 convolution to z_channels, 3x3 convolution
          | mid    residual block, attention, residual block
          | up     per level residual blocks, attention at some sizes; doubled between levels
          | head   norm, SiLU, 3x3 convolution
        images

    The 1x1 convolution is VQGAN's ``post_quant_conv``. Both together are not one 3x3 convolution,
    for the zeros that pad the input of the second lack the bias of the first.

    Args:
        latent_channels: Latent channels: VQGAN's ``embed_dim``.
        out_channels: Image channels.
        image_size: Height and width of the images.
        channels: Channels of the last level.
        channel_multipliers: Channels of each level, as multiples of ``channels``, in the encoder's
            order.
        num_blocks: Residual blocks per level of the encoder.
        attention_sizes: Heights of feature maps at which attention follows each residual block.
        z_channels: Channels between the 1x1 and the 3x3 convolution. None: ``latent_channels``.
        post_quant_conv: Whether there is a 1x1 convolution; without it the 3x3 reads the latents.
        middle_attention: Whether the middle attends.
    """

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        *,
        image_size: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_blocks: int,
        attention_sizes: Sequence[int],
        z_channels: int | None = None,
        post_quant_conv: bool = True,
        middle_attention: bool = True,
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in channel_multipliers]
        levels: list[nn.Module] = []
        before = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            levels += _level(before, width, num_blocks + 1, (image_size >> i) in attention_sizes)
            if i:
                levels += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
            before = width
        self.stem = _decoder_stem(latent_channels, z_channels, widths[-1], post_quant_conv)
        self.mid = _middle(widths[-1], middle_attention)
        self.up = nn.Sequential(*levels)
        self.head = nn.Sequential(
            group_norm(before), nn.SiLU(), nn.Conv2d(before, out_channels, 3, padding=1)
        )

    def forward(self, latents: Float[Tensor, "b l lh lw"]) -> Float[Tensor, "b c h w"]:
        """Decode."""
        x = latents
        for stage in self.stages():
            x = stage(x)
        return x

    def stages(self) -> list[nn.Module]:
        """Return the four stages in order."""
        return [self.stem, self.mid, self.up, self.head]


def check_attention(attention_sizes: Sequence[int], image_size: int, num_levels: int) -> None:
    """Check that attention is asked for at heights that feature maps have.

    Raises:
        InputError: Names the heights of the feature maps.
    """
    heights = [image_size >> level for level in range(num_levels)]
    if not set(attention_sizes) <= set(heights):
        raise InputError(
            f"attention_sizes {list(attention_sizes)} are not all heights of feature maps, which "
            f"are {', '.join(map(str, heights))}; choose some of these, or none"
        )


def _decoder_stem(
    latent_channels: int, z_channels: int | None, out_channels: int, post_quant_conv: bool
) -> nn.Module:
    if not post_quant_conv:
        return nn.Conv2d(latent_channels, out_channels, 3, padding=1)
    z_channels = _check_width(z_channels, latent_channels)
    return nn.Sequential(
        nn.Conv2d(latent_channels, z_channels, 1),
        nn.Conv2d(z_channels, out_channels, 3, padding=1),
    )


def _level(in_channels: int, out_channels: int, num_blocks: int, attend: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(num_blocks):
        layers.append(ResidualBlock(in_channels if i == 0 else out_channels, out_channels))
        layers += [PixelAttention(out_channels)] if attend else []
    return layers


def _middle(channels: int, attend: bool) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels),
        *([PixelAttention(channels)] if attend else []),
        ResidualBlock(channels, channels),
    )


def _check_width(z_channels: int | None, latent_channels: int) -> int:
    """Return ``z_channels``, or ``latent_channels`` where it is None; refuse what is below 1."""
    if z_channels is not None and z_channels < 1:
        raise InputError(f"z_channels {z_channels} must be at least 1, or None")
    return latent_channels if z_channels is None else z_channels
