"""VQ-WAE: Vector Quantized Wasserstein Auto-Encoder, Vuong et al., ICML 2023."""

from __future__ import annotations

from typing import Annotated, Literal

from diffusers.configuration_utils import register_to_config
from pydantic import Field

from spectok.recipes.schema import QuantizerOption
from spectok_vq.model import VQVAE


class VQWAE(VQVAE):
    """VQ-VAE whose codes, with learned weights, are transported onto the latents.

    The networks are those of :class:`VQVAE`; the method is the quantizer ``wasserstein``, which see
    for the losses. The sizes are the released code's for MNIST and CIFAR-10.

    Args:
        image_size: Height and width, in pixels; divisible by ``downsample_factor``.
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f; an image has (image_size / f)^2 tokens.
        codebook_size: Codes in the codebook; 512 in the released code.
        codebook_dim: Length of a code; 64 in the released code.
        channels: Hidden channels.
        num_blocks: Residual blocks in the encoder and in the decoder.
        residual_channels: Hidden channels of a residual block.
        quantizer: Name or mapping of any registered quantizer.
        reconstruction_loss: ``"l2"`` as in the paper, or ``"l1"``; on the [-1, 1] scale.
    """

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
        quantizer: QuantizerOption = "wasserstein",
        reconstruction_loss: Literal["l1", "l2"] = "l2",
    ):
        super().__init__(
            image_size=image_size,
            in_channels=in_channels,
            downsample_factor=downsample_factor,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            channels=channels,
            num_blocks=num_blocks,
            residual_channels=residual_channels,
            quantizer=quantizer,
            reconstruction_loss=reconstruction_loss,
        )
