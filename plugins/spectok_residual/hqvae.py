"""HQ-VAE: Locally Hierarchical Auto-Regressive Modeling for Image Generation, You et al., 2022."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from diffusers.configuration_utils import register_to_config
from pydantic import Field

from spectok.errors import InputError
from spectok.loading import build_quantizer
from spectok.nn import VQGANDecoder, VQGANEncoder
from spectok.nn.vqgan import check_attention
from spectok.quantizers import Quantizer
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_residual.hierarchical import HierarchicalQuantizer
from spectok_residual.token_space import BlockTokens


class HQVAE(ImageTokenizer):
    """Local pyramids: a top code per block of latent pixels, a bottom code per pixel in the block.

        images
          | encoder       residual blocks per level, halved between levels; attention
        latents (B, codebook_dim, H/f, W/f), f = 2^(levels of the network - 1)
          | token_space   one vector per block of block_size² pixels
        z
          | quantizer     a top code for the block, then a bottom code per pixel for the residual
        z_q               top + bottom
          | token_space   back on the grid
        latents
          | decoder       the encoder's mirror, with one more block per level
        images

    LPIPS and the discriminator come from the recipe's sections ``losses:`` and ``adversarial:``.

    Args:
        image_size: Height and width, in pixels; divisible by f times ``block_size``.
        in_channels: 1 for grey, 3 for colour.
        codebook_size: Codes of the top codebook, and of the bottom one; 8,192 in the paper.
        codebook_dim: Length of a bottom code; a top code has ``block_size²`` times that.
        block_size: Height and width of a block, in latent pixels; 2 in the paper.
        channels: Channels of the first level; 128 in the paper.
        channel_multipliers: Channels of each level, as multiples of ``channels``.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_sizes: Heights of feature maps at which attention follows each residual block. The
            middle of both networks always attends.
        z_channels: Channels on the network's side of the 1x1 convolutions around the codes; 256 in
            the released code. None: ``codebook_dim``.
        post_quant_conv: Whether the decoder begins with a 1x1 convolution, as the released code's
            does.
        quantizer: Name or mapping of any registered quantizer; it quantises whole blocks.
        token_order: ``"position"``: the whole pyramid of a block, then the next block, as the
            paper's prior reads them. ``"level"``: all top codes first, so that they decode alone.
        reconstruction_loss: ``"l2"`` or ``"l1"``; on the [-1, 1] scale.

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
        block_size: Annotated[int, Field(ge=1)] = 2,
        channels: Annotated[int, Field(ge=1)] = 128,
        channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] = (1, 1, 2),
        num_blocks: Annotated[int, Field(ge=1)] = 2,
        attention_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (),
        z_channels: Annotated[int, Field(ge=1)] | None = None,
        post_quant_conv: bool = True,
        quantizer: QuantizerOption = "hq",
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
        self.token_space = BlockTokens(size, size, codebook_dim, block_size)
        self.quantizer = build_quantizer(
            quantizer,
            dim=self.token_space.dim,
            num_tokens=self.token_space.num_tokens,
            codebook_size=codebook_size,
        )
        check_parts(self.quantizer, block_size)
        self.decoder = VQGANDecoder(
            codebook_dim, in_channels, post_quant_conv=post_quant_conv, **shape
        )


def check_parts(quantizer: Quantizer, block_size: int) -> None:
    """Check that the parts of a vector are the pixels of a block.

    Raises:
        InputError: If a hierarchical quantizer cuts vectors elsewhere.
    """
    pixels = block_size**2
    if isinstance(quantizer, HierarchicalQuantizer) and quantizer.num_parts != pixels:
        raise InputError(
            f"num_parts {quantizer.num_parts} is not the {pixels} pixels of a block of block_size "
            f"{block_size}; set quantizer.num_parts to {pixels}"
        )
