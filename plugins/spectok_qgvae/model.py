"""QG-VAE: Quantised Global Autoencoder, Elsner, Usinger, Czech, Kobsik, He, Lim, Kobbelt, 2024."""

from __future__ import annotations

from typing import Annotated

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok.distributed import draw_per_sample
from spectok.loading import build_quantizer
from spectok.nn import ListTokens
from spectok.recipes.schema import QuantizerOption
from spectok.token_spec import Prefix
from spectok.tokenizer import ImageTokenizer
from spectok_qgvae.unet import ConditionedUNet, num_levels

NARROWEST_ENCODER = 16
NARROWEST_DECODER = 32


class QGVAE(ImageTokenizer):
    """A list of global tokens: each describes the whole image and owns its own codebook.

        images
          | encoder       U-Net that sees the image and the position at every level
        latents (B, C, H/2^f, W/2^f)      C feature maps, one per token
          | token_space   each map, flattened, through an affine head to codebook_dim numbers
        z (B, C, codebook_dim)
          | quantizer     nearest code of the token's own codebook
        z_q
          | token_space   plus a learned offset; an affine head back to a map
        latents
          | decoder       U-Net
        images

    With ``prefix_probability`` above zero the tokens are ordered by importance (section 3.4): that
    share of the training images keeps only the first k tokens, k uniform in 0..C-1, so that any
    prefix decodes on its own. The mask multiplies the vectors after the offset: k = 0 decodes to
    one image, the mean of the data.

    The networks work on pixels in [0, 1], as in the paper: the squared error is on that scale, and
    the decoder has no output activation.

    Args:
        image_size: Height and width, in pixels.
        in_channels: 1 for grey, 3 for colour.
        num_tokens: Tokens C per image.
        codebook_size: Codes per codebook; 512 in the paper.
        codebook_dim: Length of a code; 64 in the paper.
        factor_levels: The paper's f: feature maps are 2^f times smaller than the image.
        num_heads: Affine maps each way; divides ``num_tokens``.
        num_blocks: Residual blocks per level, each way.
        max_channels: Largest number of channels in either U-Net.
        quantizer: Name or mapping of any registered quantizer.
        prefix_probability: Share of training images that keep only a prefix; 1/3 in the paper's
            ordered models, 0 for unordered ones.

    Raises:
        InputError: If the image size cannot be halved down to 8 pixels, or ``num_heads`` does not
            divide ``num_tokens``.
    """

    recomputed_units = ("ConditionedBlock",)
    fixed_size = "each token describes the whole image, through maps of that size"

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=8)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        num_tokens: Annotated[int, Field(ge=1)] = 64,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 64,
        factor_levels: Annotated[int, Field(ge=0)] = 0,
        num_heads: Annotated[int, Field(ge=1)] = 8,
        num_blocks: Annotated[int, Field(ge=1)] = 1,
        max_channels: Annotated[int, Field(ge=4)] = 128,
        quantizer: QuantizerOption = "voronoi",
        prefix_probability: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ):
        super().__init__()
        levels = num_levels(image_size, factor_levels)
        size = image_size >> factor_levels
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (num_tokens, size, size)
        self.prefix: Prefix = "tokens" if prefix_probability else "none"
        self.encoder = ConditionedUNet(
            in_channels,
            num_tokens,
            size=image_size,
            start=0,
            end=factor_levels,
            widths=encoder_widths(levels, max_channels),
            num_blocks=num_blocks,
        )
        self.token_space = ListTokens(num_tokens, size, size, codebook_dim, num_heads)
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=num_tokens, codebook_size=codebook_size
        )
        self.decoder = UnitRangeDecoder(
            ConditionedUNet(
                num_tokens,
                in_channels,
                size=image_size,
                start=factor_levels,
                end=0,
                widths=decoder_widths(levels, factor_levels, max_channels),
                num_blocks=num_blocks,
            )
        )

    decoder: UnitRangeDecoder

    def encode_latents(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n lh lw"]:
        """Return the feature maps that become tokens, one channel per token."""
        return self.encoder((self.prepare(images) + 1) / 2)

    def draw_prefix(self, batch_size: int) -> Int[Tensor, "b"] | None:
        """Keep a random prefix of some images, all tokens of the others (Eq. 9)."""
        probability = self.config["prefix_probability"]
        if not probability:
            return None
        num_tokens = self.token_space.num_tokens
        shortened = draw_per_sample(batch_size) < probability
        length = (draw_per_sample(batch_size) * num_tokens).long()
        return torch.where(shortened, length, num_tokens)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution inside the decoder's levels, as in QGGAN.

        The bias-free convolution after it projects the sum of levels and shortcut.
        """
        return self.decoder.network.last_stage.convolution.weight

    def reconstruction_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error on the [0, 1] scale (Eq. 6)."""
        error = (reconstruction.float() - images.float()) / 2
        return {"reconstruction": error.square().mean()}


class UnitRangeDecoder(nn.Module):
    """Rescale a network's pixels from [0, 1] to images in [-1, 1].

    Args:
        network: Decoder with pixels in [0, 1].
    """

    def __init__(self, network: ConditionedUNet):
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        return self.network(latents) * 2 - 1


def encoder_widths(levels: int, max_channels: int) -> list[int]:
    """Return channels per level: 16, doubling with depth up to the maximum."""
    return [min(NARROWEST_ENCODER << i, max_channels) for i in range(levels + 1)]


def decoder_widths(levels: int, factor_levels: int, max_channels: int) -> list[int]:
    """Return channels per level: the maximum, halving on the outer f levels down to 32."""
    narrow = min(NARROWEST_DECODER, max_channels)
    outer = [max(max_channels >> (factor_levels - i), narrow) for i in range(factor_levels)]
    return outer + [max_channels] * (levels + 1 - factor_levels)
