"""Frequency complement modules, and the decoder with one before each of its stages."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from spectok.nn.vqgan import VQGANDecoder, group_norm, residual_branch

FCMKind = Literal["none", "conv", "residual", "attention"]

MAX_HEADS = 8
MAX_HIDDEN = 2048
DROPOUT = 0.1


class NoComplement(nn.Module):
    """Leave the decoder as VQGAN has it: C = 0."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Return the complement C and what goes on."""
        return torch.zeros_like(x), x


class ConvComplement(nn.Module):
    """Convolutions whose output C is added to their input (Eq. 3).

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.branch = residual_branch(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Return the complement C and what goes on, ``x + C``."""
        complement = self.branch(x)
        return complement, x + complement


class ResidualComplement(nn.Module):
    """Convolutions with a shortcut inside, whose output C replaces their input.

    What goes on is what :class:`ConvComplement` hands on; what the loss sees differs.

    Args:
        channels: Channels in and out.
        dropout: Before the second convolution.
    """

    def __init__(self, channels: int, dropout: float = 0.0):
        super().__init__()
        self.branch = residual_branch(channels, channels, dropout)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Return the complement C twice, since it is also what goes on."""
        complement = x + self.branch(x)
        return complement, complement


class AttentionComplement(nn.Module):
    """A transformer layer over all pixels, whose output C replaces its input.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.layer = nn.TransformerEncoderLayer(
            channels,
            nhead=math.gcd(MAX_HEADS, channels),
            dim_feedforward=min(MAX_HIDDEN, 8 * channels),
            dropout=DROPOUT,
            batch_first=True,
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Return the complement C twice, since it is also what goes on."""
        pixels = self.layer(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        complement = rearrange(pixels, "b (h w) c -> b c h w", h=x.shape[2])
        return complement, complement


class ComplementedDecoder(VQGANDecoder):
    """VQGAN's decoder with a frequency complement module before each stage (Eq. 3).

        latents -F_4- stem -F_3- mid -F_2- up -F_1- head -> images

    F_i sees features of the shape of A_i, the output of the encoder's stage i. F_1 works at the
    size of the images, where attention would need too much memory: there ``"attention"`` takes the
    residual form.

    Args:
        latent_channels: Latent channels.
        out_channels: Image channels.
        fcm: Form of the modules.
        **shape: The other arguments of :class:`~spectok.nn.VQGANDecoder`.
    """

    def __init__(self, latent_channels: int, out_channels: int, fcm: FCMKind, **shape: Any):
        super().__init__(latent_channels, out_channels, **shape)
        multipliers = shape["channel_multipliers"]
        deepest = shape["channels"] * multipliers[-1]
        widths = [shape["channels"] * multipliers[0], deepest, deepest, latent_channels]
        self.complements = nn.ModuleList(
            make_complement(fcm, width, full_size=i == 0) for i, width in enumerate(widths)
        )

    def forward(self, latents: Float[Tensor, "b l lh lw"]) -> Float[Tensor, "b c h w"]:
        """Decode."""
        return self.decode(latents)[0]

    def decode(self, latents: Float[Tensor, "b l lh lw"]) -> tuple[Tensor, list[Tensor]]:
        """Return the images and the complements C_1, …, C_4."""
        x, complements = latents, []
        for module, stage in zip(reversed(self.complements), self.stages()):
            complement, x = module(x)
            complements.append(complement)
            x = stage(x)
        return x, complements[::-1]


def make_complement(kind: FCMKind, channels: int, full_size: bool) -> nn.Module:
    """Return one frequency complement module.

    Args:
        kind: Its form.
        channels: Channels in and out.
        full_size: Whether it works at the full size of the images.
    """
    if kind == "none":
        return NoComplement()
    if kind == "conv":
        return ConvComplement(channels)
    if kind == "residual":
        return ResidualComplement(channels)
    return ResidualComplement(channels, DROPOUT) if full_size else AttentionComplement(channels)
