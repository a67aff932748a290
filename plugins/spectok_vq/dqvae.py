"""DQ-VAE: Towards Accurate Image Coding, M. Huang, Mao, Chen and Zhang, CVPR 2023."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from spectok.loading import build_quantizer
from spectok.nn import VQGANDecoder, VQGANEncoder
from spectok.nn.vqgan import check_attention
from spectok.outputs import TokenizerOutput
from spectok.recipes.schema import QuantizerOption
from spectok.remembered import remembered
from spectok.token_spec import Level, TokenSpec
from spectok.tokenizer import ImageTokenizer, check_divisible
from spectok_vq.grains import DualGrains, budget_loss


class DQVAE(ImageTokenizer):
    """A grid of local tokens with one code for a smooth region and four for a detailed one.

        images
          | encoder                   residual blocks per level, halved between levels; attention
        latents (B, codebook_dim, 2h, 2w), the fine grain
          | token_space.to_vectors    halved once more: the coarse grain; a router chooses by region
        z (B, 4hw, codebook_dim), and the map of grains (B, h, w)
          | quantizer                 nearest code of one shared codebook
        z_q
          | token_space.repeat_first  a coarse region has one code at its four places
          | token_space.to_latents    back on the grid
        latents
          | decoder                   the encoder's mirror, with one more block per level
        images

    **Tokens.** How many codes an image takes is decided by the image, but T is fixed: first the map
    of grains, a level of one bit per region, then the quantizer's levels with one place per latent
    pixel. In a coarse region ``encode`` writes the index of the first place, top left, into the
    other three as well, and ``decode`` does not read these. ``bits_per_image`` is the most that an
    image can take. The metrics ``tokens_used`` and ``bits_used`` say what images take on average:
    the map, and the places that ``decode`` reads.

    In training the grains are drawn by Gumbel-softmax, and a budget holds their mean share at
    ``fine_share``. LPIPS and the discriminator come from the recipe's sections ``losses:`` and
    ``adversarial:``.

    Args:
        image_size: Height and width, in pixels; divisible by a region's 2^(levels - 1).
        in_channels: 1 for grey, 3 for colour.
        codebook_size: Codes in the codebook of both grains; 1,024 in the paper.
        codebook_dim: Length of a code; 256 in the released code.
        channels: Channels of the first level; 128 in the released code.
        channel_multipliers: Channels of each level, as multiples of ``channels``; at least two.
            The last level makes the coarse grain, the one before it the fine one: five levels for
            downsampling by 16 and 8, as 1, 1, 2, 2, 4 in the released code.
        num_blocks: Residual blocks per level; the decoder has one more.
        attention_sizes: Heights of feature maps at which attention follows each residual block; 16
            and 32 in the released code. The middle of each network always attends.
        fine_share: Target share r of fine regions; 0.5 in most of the paper. The mean number of
            codes is then (1 + 3 r) times that of the regions.
        budget_weight: Weight of the budget; 10 in the released code. 0 leaves it out.
        quantizer: Name or mapping of any registered quantizer.
        reconstruction_loss: ``"l1"`` as in VQGAN's released code, or ``"l2"``; on the [-1, 1]
            scale.

    Raises:
        InputError: If sizes do not fit together.
    """

    token_space: DualGrains  # type: ignore[assignment]

    fixed_size = None

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        codebook_size: Annotated[int, Field(ge=2)] = 1024,
        codebook_dim: Annotated[int, Field(ge=1)] = 256,
        channels: Annotated[int, Field(ge=1)] = 128,
        channel_multipliers: Annotated[
            Sequence[Annotated[int, Field(ge=1)]], Field(min_length=2)
        ] = (1, 1, 2, 2),
        num_blocks: Annotated[int, Field(ge=1)] = 2,
        attention_sizes: Sequence[Annotated[int, Field(ge=1)]] = (),
        fine_share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        budget_weight: Annotated[float, Field(ge=0)] = 10.0,
        quantizer: QuantizerOption = "ema",
        reconstruction_loss: Literal["l1", "l2"] = "l1",
    ):
        super().__init__()
        num_levels = len(channel_multipliers)
        check_divisible(image_size, 2 ** (num_levels - 1))
        check_attention(attention_sizes, image_size, num_levels)
        size = image_size // 2 ** (num_levels - 2)
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (codebook_dim, size, size)
        self.fine_share, self.budget_weight = fine_share, budget_weight
        shape: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "channel_multipliers": channel_multipliers[:-1],
            "num_blocks": num_blocks,
            "attention_sizes": attention_sizes,
        }
        self.encoder = VQGANEncoder(in_channels, codebook_dim, **shape)
        self.token_space = DualGrains(
            size,
            codebook_dim,
            channels=channels,
            multipliers=channel_multipliers[-2:],
            num_blocks=num_blocks,
            attention=size // 2 in attention_sizes,
        )
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=size * size, codebook_size=codebook_size
        )
        self.decoder = VQGANDecoder(codebook_dim, in_channels, **shape)

    @remembered
    def token_spec(self) -> TokenSpec:
        """The map of grains, 0 coarse and 1 fine, then the quantizer's levels at all places."""
        regions, places = self.token_space.shapes
        codes = (level.at(places) for level in self.quantizer.levels)
        return TokenSpec((Level(regions, vocab_size=2), *codes))

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """None for the map of grains, then the codes."""
        return (None, *self.quantizer.code_tables)

    # -- the pipeline ----------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, choose grains, quantise and decode.

        Args:
            images: In [-1, 1], of ``image_shape``.
        """
        latents = self.encode_latents(images)
        z, gates = self.token_space.to_vectors(latents, draw=self.training)
        quantized, fine = self.quantizer(z), gates > 0.5
        z_q = self.token_space.repeat_first(quantized.z_q, fine)
        reconstruction = self.decoder(self.token_space.to_latents(z_q.to(latents.dtype)))
        losses = self.compare(images, reconstruction) | quantized.losses
        if self.training and self.budget_weight:
            losses["budget"] = self.budget_weight * budget_loss(gates, self.fine_share)
        metrics = quantized.metrics | self.spent(fine)
        indices = self._flatten(quantized.indices, fine)
        return TokenizerOutput(reconstruction, indices, losses, metrics)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        """Turn images in [-1, 1] into int64 tokens: the map of grains, then the codes.

        Raises:
            InputError: If the images are not of ``image_shape``, or not finite.
        """
        self.check_finite(images)
        return self._quantize(self.encode_latents(images))

    def decode(
        self, indices: Int[Tensor, "b t"], num_tokens: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Turn tokens into images, about [-1, 1] (not clamped).

        Args:
            indices: int64 tokens, always T per image; of a coarse region's, the first place counts.
            num_tokens: T or None, since only all tokens decode.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If ``num_tokens`` is any other number, or the decoder overflows.
        """
        self.check_prefix(num_tokens)
        z_q = self.embed(indices).to(self.dtype)
        return self.check_decoded(self.decoder(self.token_space.to_latents(z_q)))

    def embed(self, indices: Int[Tensor, "b t"]) -> Float[Tensor, "b n d"]:
        """Return the quantised vectors of all places, alike within a coarse region."""
        self.token_spec.validate(indices)
        grains, *levels = self.token_spec.unflatten(indices)
        codes = torch.stack([level.flatten(1) for level in levels], dim=-1)
        return self.token_space.repeat_first(self.quantizer.lookup(codes), grains > 0)

    def decode_latents(self, latents: Float[Tensor, "b lc lh lw"]) -> Float[Tensor, "b c h w"]:
        """Quantise continuous latents and decode them, as latent diffusion does."""
        return self.decode(self._quantize(latents.to(self.dtype)))

    # -- grains ----------------------------------------------------------------------------------

    @torch.no_grad()
    def spent(self, fine: Bool[Tensor, "b rh rw"]) -> dict[str, Tensor]:
        """Return the mean share of fine regions, and the mean tokens and bits of an image.

        The map counts as one token and one bit per region.

        Args:
            fine: Which regions are fine.
        """
        share, regions = fine.float().mean(), fine[0].numel()
        codes = regions * (1 + 3 * share)
        bits = [math.log2(level.vocab_size) for level in self.quantizer.levels]
        return {
            "fine_share": share,
            "tokens_used": regions + codes * len(bits),
            "bits_used": regions + codes * sum(bits),
        }

    @torch.no_grad()
    def _quantize(self, latents: Float[Tensor, "b lc lh lw"]) -> Int[Tensor, "b t"]:
        z, gates = self.token_space.to_vectors(latents, draw=False)
        return self._flatten(self.quantizer.encode(z), gates > 0.5)

    def _flatten(self, codes: Int[Tensor, "b n l"], fine: Bool[Tensor, "b rh rw"]) -> Tensor:
        levels = self.token_space.repeat_first(codes, fine).unbind(-1)
        places = self.token_space.shapes[1]
        return self.token_spec.flatten(
            [fine.long(), *(level.reshape(-1, *places) for level in levels)]
        )
