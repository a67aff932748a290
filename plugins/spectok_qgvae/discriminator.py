"""The discriminator of QGGAN: the U-Net of QG-VAE, with one logit per pixel."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectok_qgvae.model import NARROWEST_ENCODER, encoder_widths
from spectok_qgvae.unet import ConditionedBlock, ConditionedUNet, num_levels


class PixelUNet(nn.Module):
    """A conditioned block, a U-Net from full resolution to full resolution, a block to one channel.

        images
          | stem    a block to 16 channels
          | unet    16, 32, … channels down to 8 pixels, and back
          | head    a block to one channel
        logits (B, 1, H, W)

    Args:
        image_shape: ``(C, H, W)`` of the images, square.
        num_blocks: Residual blocks per level, each way.
        max_channels: Largest number of channels.

    Raises:
        InputError: If the image size cannot be halved down to 8 pixels.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_blocks: Annotated[int, Field(ge=1)] = 2,
        max_channels: Annotated[int, Field(ge=4)] = 128,
    ):
        super().__init__()
        channels, size, _ = image_shape
        widths = encoder_widths(num_levels(size, 0), max_channels)
        self.stem = ConditionedBlock(channels, NARROWEST_ENCODER, channels)
        self.unet = ConditionedUNet(
            NARROWEST_ENCODER,
            NARROWEST_ENCODER,
            size=size,
            start=0,
            end=0,
            widths=widths,
            num_blocks=num_blocks,
        )
        self.head = ConditionedBlock(NARROWEST_ENCODER, 1, channels)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return one logit per pixel of images in [-1, 1]."""
        pixels = (images + 1) / 2
        position = self.unet.position.to(pixels.dtype)
        features = self.unet(self.stem(pixels, pixels, position))
        return self.head(features, pixels, position)
