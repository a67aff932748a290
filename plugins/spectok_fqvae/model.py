"""FQ-VAE: Frequency-Quantized Variational Autoencoder Based on 2D-FFT, Feng & Liu, 2025."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import nn

from spectok.errors import InputError
from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_fqvae.filters import FilterInit
from spectok_fqvae.graph import Gate, GraphGate
from spectok_fqvae.networks import PatchTransformer, UNet
from spectok_fqvae.token_space import FrequencyTokens, GatedGridTokens, Transform

FIXED_SIZE = {
    "fft": "its filters have a number for each frequency of that size",
    "convolution": None,
    "transformer": "its transformers learned a position for each patch of that size",
}
"""Why each extractor serves images of one size; None if it serves others."""


class FQVAE(ImageTokenizer):
    """Tokens are filtered frequency maps of the whole image.

        images
          | encoder       to D channels at the resolution of the image
        latents (B, D, h, w)
          | token_space   FFT; N dynamic filters per channel; each map projected to codebook_dim
        z (B, U = N D, codebook_dim)
          | quantizer     nearest code; codes follow usage and correlation (Eq. 6-10)
        z_q
          | token_space   back to maps; graph gate (Eq. 12); sum of the filters; inverse FFT
        latents
          | decoder
        images

    The reconstruction term is the mean squared error on the [-1, 1] scale (Eq. 1).

    Deviations: the paper quantises whole maps with one codebook for all of them, and its encoder is
    a few convolutions; that reading trains poorly. It is the recipe ``fqvae/literal_cifar10``:
    ``codebook_dim: null, filter_init: noise, network: conv, quantizer: {num_codebooks: 1}``. The
    plugin's README has the measurements and our reading of every ambiguous equation.

    ``extractor`` also selects the two other feature extractors of Table 4, and with them the rows
    of Table 2 without frequency quantisation: the same quantizers and the same graph module, on a
    grid of local tokens.

    Args:
        image_size: Height and width, in pixels.
        in_channels: 1 for grey, 3 for colour.
        num_tokens: Tokens U per image; a square number for a grid.
        codebook_size: Codes per codebook.
        codebook_dim: Length of a code. None: whole maps, ``2 h (w//2+1)`` numbers; ``"fft"`` only.
        extractor: ``"fft"``, or a grid from strided ``"convolution"`` or a ``"transformer"`` on
            patches.
        latent_channels: Channels D of ``"fft"``; each has ``num_tokens / D`` filters.
        num_heads: Projections each way of ``"fft"``; divides ``num_tokens``. None: one per token.
        filter_init: Initial filters of ``"fft"``: ``"bins"``, ``"phase"``, ``"shifts"`` or
            ``"noise"``; see :func:`~spectok_fqvae.filters.start_filters`.
        network: Encoder and decoder of ``"fft"``: ``"unet"`` sees the whole image, ``"conv"`` is
            the paper's.
        downsample_factor: Power of two between images and latents. None: 1 for ``"fft"``; for a
            grid, the factor that gives ``num_tokens``.
        channels: Hidden channels; in the U-Net those of the top level.
        max_channels: Largest number of channels in the U-Net.
        num_blocks: Residual or attention blocks; in the U-Net per level.
        residual_channels: Hidden channels of a convolutional residual block.
        graph_gate: Range of the gate: ``"double_sigmoid"`` (0, 2), ``"sigmoid"`` (0, 1); None: no
            graph module.
        transform: What ``"fft"`` filters: ``"fft"``: the spectrum. ``"linear"``, a control: the
            pixels, so that filters and projections are a learned linear map of as many numbers;
            needs ``filter_init`` ``"phase"`` or ``"noise"``.
        dynamic_weights: Whether the weights of the filters follow the image (Eq. 4); if not, all
            are 1.
        learned_filters: Whether the filters are trained; if not, they stay as they start.
        parseval_weights: Of whole maps (``codebook_dim`` None), count each bin of the half-plane as
            often as it stands for: distances are then those of the maps' images. False in the
            paper, which says "nearest" alone.
        quantizer: Name or mapping of any registered quantizer.

    Raises:
        InputError: If sizes do not fit together.
    """

    added_options: ClassVar[Mapping[str, Any]] = {
        "transform": "fft",
        "dynamic_weights": True,
        "learned_filters": True,
        "parseval_weights": False,
    }

    recomputed_units = ("ResidualBlock", "NormBlock", "AttentionBlock")

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        num_tokens: Annotated[int, Field(ge=1)] = 64,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] | None = 8,
        extractor: Literal["fft", "convolution", "transformer"] = "fft",
        latent_channels: Annotated[int, Field(ge=1)] = 2,
        num_heads: Annotated[int, Field(ge=1)] | None = None,
        filter_init: FilterInit = "bins",
        network: Literal["unet", "conv"] = "unet",
        downsample_factor: Annotated[int, Field(ge=1)] | None = None,
        channels: Annotated[int, Field(ge=2)] = 32,
        max_channels: Annotated[int, Field(ge=2)] = 128,
        num_blocks: Annotated[int, Field(ge=1)] = 1,
        residual_channels: Annotated[int, Field(ge=1)] = 32,
        graph_gate: Gate | None = "double_sigmoid",
        transform: Transform = "fft",
        dynamic_weights: bool = True,
        learned_filters: bool = True,
        parseval_weights: bool = False,
        quantizer: QuantizerOption = "cvq_pearson",
    ):
        super().__init__()
        on_grid = extractor != "fft"
        if on_grid and codebook_dim is None:
            raise InputError(f"extractor {extractor!r} needs a codebook_dim, e.g. 64")
        if on_grid and parseval_weights:
            raise InputError(
                f"parseval_weights is for whole frequency maps, and extractor {extractor!r} has "
                f"none; set extractor=fft and codebook_dim=null, or leave the weights out"
            )
        factor = downsample_factor or (_grid_factor(image_size, num_tokens) if on_grid else 1)
        check_divisible(image_size, factor)
        size = image_size // factor
        if on_grid and size * size != num_tokens:
            raise InputError(
                f"downsample_factor {factor} gives a grid of {size}x{size} = {size * size} tokens, "
                f"not num_tokens {num_tokens}; leave out one of the two"
            )
        self.fixed_size = FIXED_SIZE[extractor]
        depth: int = codebook_dim if on_grid else latent_channels  # type: ignore[assignment]
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (depth, size, size)
        kind = network if extractor == "fft" else extractor
        build = {"unet": _unets, "conv": _convolutions, "convolution": _convolutions}
        self.encoder, self.decoder = build.get(kind, _transformers)(
            in_channels,
            depth,
            size=size,
            factor=factor,
            channels=channels,
            max_channels=max_channels,
            num_blocks=num_blocks,
            residual_channels=residual_channels,
        )
        nodes = depth if on_grid else num_tokens
        gate = None if graph_gate is None else GraphGate(nodes, graph_gate)
        if on_grid:
            self.token_space = GatedGridTokens(size, size, depth, gate)
        else:
            self.token_space = FrequencyTokens(
                latent_channels,
                num_tokens,
                height=size,
                width=size,
                dim=codebook_dim,
                num_heads=num_heads or num_tokens,
                filter_init=filter_init,
                gate=gate,
                transform=transform,
                dynamic_weights=dynamic_weights,
                learned_filters=learned_filters,
                parseval_weights=parseval_weights,
            )
        self.quantizer = build_quantizer(
            quantizer,
            dim=self.token_space.dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
        )


def _grid_factor(image_size: int, num_tokens: int) -> int:
    """Return the factor between an image and a square grid of tokens."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens or image_size % side:
        raise InputError(
            f"num_tokens {num_tokens} is not a square grid on {image_size} pixels, e.g. "
            f"{(image_size // 4) ** 2}"
        )
    return image_size // side


def _unets(
    image_channels: int, latent_channels: int, *, size: int, factor: int, **widths: Any
) -> tuple[nn.Module, nn.Module]:
    """Return U-Nets at the latents' resolution, strided convolutions between them and images."""
    del widths["residual_channels"]
    channels = widths["channels"]
    if factor == 1:
        return (
            UNet(image_channels, latent_channels, size=size, **widths),
            UNet(latent_channels, image_channels, size=size, **widths),
        )
    strided = {"channels": channels, "num_blocks": 0, "residual_channels": channels}
    down = ConvEncoder(image_channels, channels, downsample_factor=factor, **strided)
    up = ConvDecoder(channels, image_channels, downsample_factor=factor, **strided)
    return (
        nn.Sequential(down, UNet(channels, latent_channels, size=size, **widths)),
        nn.Sequential(UNet(latent_channels, channels, size=size, **widths), up),
    )


def _convolutions(
    image_channels: int, latent_channels: int, *, size: int, factor: int, **widths: Any
) -> tuple[nn.Module, nn.Module]:
    """Return the convolutional networks of VQ-VAE."""
    kept = {name: widths[name] for name in ("channels", "num_blocks", "residual_channels")}
    return (
        ConvEncoder(image_channels, latent_channels, downsample_factor=factor, **kept),
        ConvDecoder(latent_channels, image_channels, downsample_factor=factor, **kept),
    )


def _transformers(
    image_channels: int, latent_channels: int, *, size: int, factor: int, **widths: Any
) -> tuple[nn.Module, nn.Module]:
    """Return transformers on patches of ``factor`` pixels, as in ViT-VQGAN."""
    kept = {"size": size, "channels": widths["channels"], "num_blocks": widths["num_blocks"]}
    pixels = image_channels * factor * factor
    return (
        nn.Sequential(nn.PixelUnshuffle(factor), PatchTransformer(pixels, latent_channels, **kept)),
        nn.Sequential(PatchTransformer(latent_channels, pixels, **kept), nn.PixelShuffle(factor)),
    )
