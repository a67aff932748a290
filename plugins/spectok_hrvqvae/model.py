"""HR-VQVAE, Adiban, Stefanov, Siniscalchi and Salvi, BMVC 2022."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok.errors import InputError
from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder, GridTokens
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_hrvqvae.codebooks import CodebookTree


class HRVQVAE(ImageTokenizer):
    """Hierarchical residual VQ-VAE: a grid of local tokens from a tree of codebooks.

        images
          | encoder       strided convolutions, residual blocks, 1x1 convolution
        latents (B, codebook_dim, H/f, W/f)
          | token_space   one vector per latent pixel
        z
          | quantizer     tree: at each level the child nearest to the residual of z
        z_q               sum of the codes on the path
          | token_space   back on the grid
        latents
          | decoder       3x3 convolution, residual blocks, transposed convolutions
        images

    The paper does not describe its networks; VQ-VAE's are used.

    Args:
        image_size: Height and width, in pixels; divisible by ``downsample_factor``.
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f; 2 for CIFAR-10 and MNIST in the paper, 4 for ImageNet at
            128 pixels, 8 for FFHQ at 256.
        codebook_size: Leaves of the tree; 512 in most of the paper.
        codebook_dim: Length of a code.
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
        downsample_factor: Annotated[int, Field(ge=1)] = 2,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 64,
        channels: Annotated[int, Field(ge=2)] = 128,
        num_blocks: Annotated[int, Field(ge=0)] = 2,
        residual_channels: Annotated[int, Field(ge=1)] = 32,
        quantizer: QuantizerOption = "tree",
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

    def decode_levels(
        self, indices: Int[Tensor, "b t"], levels: Sequence[int]
    ) -> Float[Tensor, "b c h w"]:
        """Decode the contributions of some levels alone (Fig. 1 and 8).

        Args:
            indices: int64 tokens, always T per image.
            levels: Levels of the tree to add up, from 0.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If the quantizer is not a tree, or has no such level.
        """
        if not isinstance(self.quantizer, CodebookTree):
            raise InputError(f"a {type(self.quantizer).__name__} has no levels to leave out")
        depth = len(self.quantizer.branching)
        if not levels or not set(levels) <= set(range(depth)):
            raise InputError(f"levels {list(levels)} are not some of 0 to {depth - 1}")
        self.token_spec.validate(indices)
        codes = self.quantizer.level_codes(self.quantizer.paths(self._from_sequence(indices)))
        z_q = torch.stack([codes[level] for level in sorted(set(levels))]).sum(0).to(self.dtype)
        return self.decoder(self.token_space.to_latents(z_q))
