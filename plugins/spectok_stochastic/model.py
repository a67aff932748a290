"""SQ-VAE: Variational Bayes on Discrete Representation, Takida et al., ICML 2022."""

from __future__ import annotations

import math
from typing import Annotated

from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor

from spectok import losses
from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder, GridTokens
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_stochastic.quantizer import LogVariance, StochasticQuantizer

INITIAL_VARIANCE = 0.1


class SQVAE(ImageTokenizer):
    """Stochastically quantised VAE: codes are drawn at random, ever less so as training proceeds.

        images
          | encoder       strided convolutions, residual blocks, 1x1 convolution
        latents (B, codebook_dim, H/f, W/f)
          | token_space   one vector per latent pixel
        z
          | quantizer     training: a random code by distance; eval: the nearest
        z_q
          | token_space   back on the grid
        latents
          | decoder       3x3 convolution, residual blocks, transposed convolutions
        images

    Trained on the variational bound, with decoder noise of a learned variance s²::

        reconstruction = latent_weight (pixels / 2 N D) (mean |x - x̂|² / s² + log s²)

    This is the negative log-likelihood of an image, per entry of z (N D of them), with the weight
    that the quantizer ``sq`` gives to its own two terms per entry of z; ``pixels`` counts channels.

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
        variance_learning_rate: Peak learning rate of log s². None: that of the other parameters,
            as in the released code.
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
        quantizer: QuantizerOption = "sq",
        variance_learning_rate: Annotated[float, Field(gt=0)] | None = 0.03,
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
        self.variance = LogVariance(INITIAL_VARIANCE, variance_learning_rate)

    def reconstruction_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the negative log-likelihood of the images, per entry of z."""
        variance = self.variance()
        per_pixel = losses.l2(reconstruction, images) / variance + variance.log()
        share = math.prod(self.image_shape) / math.prod(self.latent_shape)
        quantizer = self.quantizer
        is_bound = isinstance(quantizer, StochasticQuantizer)
        weight = quantizer.latent_weight if is_bound else 1.0
        return {"reconstruction": 0.5 * weight * share * per_pixel}
