"""VQ-VAE: Neural Discrete Representation Learning, van den Oord et al., NeurIPS 2017."""

from __future__ import annotations

from typing import Annotated, Literal

from diffusers.configuration_utils import register_to_config
from pydantic import Field

from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder, GridTokens
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible


class VQVAE(ImageTokenizer):
    """A grid of local tokens from a strided convolutional autoencoder.

        images
          | encoder       strided convolutions, residual blocks, 1x1 convolution
        latents (B, codebook_dim, H/f, W/f)
          | token_space   one vector per latent pixel
        z
          | quantizer     nearest code of one shared codebook
        z_q
          | token_space   back on the grid
        latents
          | decoder       3x3 convolution, residual blocks, transposed convolutions
        images

    Args:
        image_size: Height and width, in pixels; divisible by ``downsample_factor``.
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f; an image has (image_size / f)^2 tokens.
        codebook_size: Codes in the codebook.
        codebook_dim: Length of a code; 64 in the paper.
        channels: Hidden channels.
        num_blocks: Residual blocks in the encoder and in the decoder.
        residual_channels: Hidden channels of a residual block.
        quantizer: Name or mapping of any registered quantizer.
        reconstruction_loss: ``"l2"`` as in the paper, or ``"l1"``; on the [-1, 1] scale.
    """

    fixed_size = None

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        downsample_factor: Annotated[int, Field(ge=1)] = 4,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 64,
        channels: Annotated[int, Field(ge=2)] = 128,
        num_blocks: Annotated[int, Field(ge=0)] = 2,
        residual_channels: Annotated[int, Field(ge=1)] = 32,
        quantizer: QuantizerOption = "ema",
        reconstruction_loss: Literal["l1", "l2"] = "l2",
    ):
        super().__init__()
        check_divisible(image_size, downsample_factor)
        size = image_size // downsample_factor
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (codebook_dim, size, size)
        width = {
            "channels": channels,
            "num_blocks": num_blocks,
            "residual_channels": residual_channels,
            "downsample_factor": downsample_factor,
        }
        self.encoder = ConvEncoder(in_channels, codebook_dim, **width)
        self.token_space = GridTokens(size, size, codebook_dim)
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=size * size, codebook_size=codebook_size
        )
        self.decoder = ConvDecoder(codebook_dim, in_channels, **width)
