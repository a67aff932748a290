"""RQ-VAE: Autoregressive Image Generation using Residual Quantization, Lee et al., CVPR 2022."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from diffusers.configuration_utils import register_to_config
from pydantic import Field

from spectok.loading import build_quantizer
from spectok.nn import GridTokens, VQGANDecoder, VQGANEncoder
from spectok.nn.vqgan import check_attention
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible


class RQVAE(ImageTokenizer):
    """A coarse grid of places, each with a stack of codes, from VQGAN's networks.

        images
          | encoder       residual blocks per level, halved between levels; attention
        latents (B, codebook_dim, H/f, W/f), f = 2^(levels of the network - 1)
          | token_space   one vector per latent pixel
        z
          | quantizer     nearest code to the residual, several times over
        z_q               sum of the codes
          | token_space   back on the grid
        latents
          | decoder       the encoder's mirror, with one more block per level
        images

    LPIPS and the discriminator come from the recipe's sections ``losses:`` and ``adversarial:``.

    Args:
        image_size: Height and width, in pixels; divisible by f.
        in_channels: 1 for grey, 3 for colour.
        codebook_size: Codes per codebook; 2,048 or 16,384 in the paper.
        codebook_dim: Length of a code; 256 in the paper.
        channels: Channels of the first level; 128 in the paper.
        channel_multipliers: Channels of each level, as multiples of ``channels``;
            1, 1, 2, 2, 4, 4 in the paper, so that f is 32.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_sizes: Heights of feature maps at which attention follows each residual block; 8
            in the paper. The middle of both networks always attends.
        z_channels: Channels on the network's side of the 1x1 convolutions around the codes; 256 in
            the released code. None: ``codebook_dim``.
        post_quant_conv: Whether the decoder begins with a 1x1 convolution, as the released code's
            does.
        quantizer: Name or mapping of any registered quantizer.
        token_order: ``"position"``: the whole stack of a place, then the next place, as the paper's
            prior reads them. ``"level"``: the first codes of all places, then the second ones, so
            that images decode depth by depth.
        reconstruction_loss: ``"l2"`` as in the paper, or ``"l1"``; on the [-1, 1] scale.

    Raises:
        InputError: If sizes do not fit together.
    """

    added_options: ClassVar[Mapping[str, Any]] = {"z_channels": None, "post_quant_conv": False}

    fixed_size = None

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 256,
        channels: Annotated[int, Field(ge=1)] = 128,
        channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] = (1, 1, 2),
        num_blocks: Annotated[int, Field(ge=1)] = 2,
        attention_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (),
        z_channels: Annotated[int, Field(ge=1)] | None = None,
        post_quant_conv: bool = True,
        quantizer: QuantizerOption = "rq",
        token_order: Literal["position", "level"] = "position",
        reconstruction_loss: Literal["l1", "l2"] = "l2",
    ):
        super().__init__()
        factor = 2 ** (len(channel_multipliers) - 1)
        check_divisible(image_size, factor)
        check_attention(attention_sizes, image_size, len(channel_multipliers))
        size = image_size // factor
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (codebook_dim, size, size)
        self.order = token_order
        shape: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "channel_multipliers": channel_multipliers,
            "num_blocks": num_blocks,
            "attention_sizes": attention_sizes,
            "z_channels": z_channels,
        }
        self.encoder = VQGANEncoder(in_channels, codebook_dim, **shape)
        self.token_space = GridTokens(size, size, codebook_dim)
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=size * size, codebook_size=codebook_size
        )
        self.decoder = VQGANDecoder(
            codebook_dim, in_channels, post_quant_conv=post_quant_conv, **shape
        )
