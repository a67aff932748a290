"""A diffusers UNet for latents of any size, conditioned on nothing, a class or a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from spectok.errors import ConfigError
from spectok_generation.conditions import Condition, TextFeatures

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

HEAD_WIDTH = 8
"""Channels of an attention head, as in diffusers' UNet2DModel."""


@dataclass(frozen=True)
class UNetShape:
    """Width and depth of a UNet.

    Args:
        channels: Channels of each level; every level but the last halves height and width.
        layers: Residual blocks per level on the way down; one more on the way up.
        attention_levels: Levels with attention, counted from 0; the middle always has it.
        dropout: Dropout inside the residual blocks.
    """

    channels: Sequence[int]
    layers: int
    attention_levels: Sequence[int]
    dropout: float

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % HEAD_WIDTH for width in self.channels):
            raise ConfigError(
                f"prior.channels {list(self.channels)}: one number per level, each divisible by "
                f"{HEAD_WIDTH}, e.g. [64, 128]"
            )
        if wrong := [level for level in self.attention_levels if level not in self.levels]:
            raise ConfigError(
                f"prior.attention_levels: {wrong[0]} is not one of the {len(self.channels)} levels "
                f"0..{len(self.channels) - 1} of prior.channels"
            )

    @property
    def levels(self) -> range:
        """Indices of the levels."""
        return range(len(self.channels))


class Denoiser(nn.Module):
    """A UNet for latents of any size, with a class or a text.

        noisy (B,c,h,w)     times (B,)     class (B,)  or  text (B,L,D)
          | pad               |              |               | layer norm; a learned vector first
          └───────────────────┴─── unet ─────┴───────────────┘
                              | crop
                            prediction (B,c,h,w)

    Height and width are zero-padded to the next multiple that all levels can halve, and the
    prediction is cropped again: padding is internal to the network.

    A text is read by cross-attention. "No text" attends to the learned vector alone, so it does not
    depend on the hidden features. The layer norm removes the scale of the text encoder.

    Args:
        num_channels: Channels c of the latents.
        shape: Width and depth.
        num_classes: Number of classes; the class of this index means "no class".
        text_width: Length D of text features; 0 without text.
    """

    def __init__(self, num_channels: int, shape: UNetShape, num_classes: int, text_width: int):
        super().__init__()
        self.multiple = 2 ** (len(shape.channels) - 1)
        if text_width:
            self.unet: nn.Module = _text_unet(num_channels, shape, text_width)
            self.read_text = nn.LayerNorm(text_width)
            self.null_text = nn.Parameter(torch.randn(1, 1, text_width))
        else:
            self.unet = _unet(num_channels, shape, num_classes)
        self.has_classes = num_classes > 0

    def forward(
        self, noisy: Float[Tensor, "b c h w"], times: Num[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """Return the network's prediction.

        Args:
            noisy: Noisy latents.
            times: Noise level of each image, on the scale of the noise schedule.
            condition: A checked condition; see :meth:`spectok_generation.Prior.check_condition`.
        """
        height, width = noisy.shape[2:]
        below, right = -height % self.multiple, -width % self.multiple
        padded = F.pad(noisy, (right // 2, right - right // 2, below // 2, below - below // 2))
        prediction = self._run(padded, times, condition)
        top, left = below // 2, right // 2
        return prediction[:, :, top : top + height, left : left + width]

    def _run(self, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
        if isinstance(condition, TextFeatures):
            words = self.read_text(condition.features)
            first = self.null_text.to(words.dtype).expand(len(words), -1, -1)
            features = torch.cat([first, words], dim=1)
            mask = F.pad(condition.mask, (1, 0), value=True)
            return self.unet(noisy, times, features, encoder_attention_mask=mask).sample
        labels = condition if self.has_classes else None
        return self.unet(noisy, times, class_labels=labels).sample


def _unet(num_channels: int, shape: UNetShape, num_classes: int) -> UNet2DModel:
    from diffusers.models.unets.unet_2d import UNet2DModel  # seconds, which other priors need not

    kinds = ["Attn" if level in shape.attention_levels else "" for level in shape.levels]
    return UNet2DModel(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=tuple(shape.channels),
        layers_per_block=shape.layers,
        dropout=shape.dropout,
        attention_head_dim=HEAD_WIDTH,
        norm_num_groups=_norm_groups(shape),
        num_class_embeds=num_classes + 1 if num_classes else None,
    )


def _text_unet(num_channels: int, shape: UNetShape, text_width: int) -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = ["CrossAttn" if level in shape.attention_levels else "" for level in shape.levels]
    return UNet2DConditionModel(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=tuple(shape.channels),
        layers_per_block=shape.layers,
        dropout=shape.dropout,
        # despite its name, this class takes the number of heads here, one per level
        attention_head_dim=tuple(width // HEAD_WIDTH for width in shape.channels),  # type: ignore[arg-type]
        norm_num_groups=_norm_groups(shape),
        cross_attention_dim=text_width,
    )


def _norm_groups(shape: UNetShape) -> int:
    return math.gcd(32, *shape.channels)
