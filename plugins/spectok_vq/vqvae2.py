"""VQ-VAE-2: Generating Diverse High-Fidelity Images, Razavi, van den Oord and Vinyals, 2019."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder
from spectok.outputs import TokenizerOutput
from spectok.recipes.schema import QuantizerOption
from spectok.token_spec import TokenSpec
from spectok.tokenizer import ImageTokenizer, check_divisible


class TwoGrids(nn.Module):
    """How latents become the vectors of two grids, the finer conditioned on the coarser's codes.

    Args:
        size: Height and width of the finer grid; even.
        dim: Channels of the latents, and length of a vector on either grid.
        width: ``channels``, ``num_blocks`` and ``residual_channels`` of the networks between the
            two grids.
    """

    def __init__(self, size: int, dim: int, width: dict[str, int]):
        super().__init__()
        self.size, self.dim = size, dim
        self.to_top = ConvEncoder(dim, dim, downsample_factor=2, **width)
        self.from_top = ConvDecoder(dim, dim, downsample_factor=2, **width)
        self.to_bottom = nn.Conv2d(2 * dim, dim, 1)
        self.upsample = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Layouts of the coarser and of the finer grid."""
        return (self.size // 2, self.size // 2), (self.size, self.size)

    def top_vectors(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b m d"]:
        """Return the vectors that are quantised first: h_top of Algorithm 1."""
        return rearrange(self.to_top(latents), "b d h w -> b (h w) d")

    def bottom_vectors(
        self, latents: Float[Tensor, "b d h w"], top: Float[Tensor, "b m d"]
    ) -> Float[Tensor, "b n d"]:
        """Return the vectors that are quantised next, given the coarser grid's codes: h_bottom."""
        told = self.from_top(self._grid(top))
        return rearrange(self.to_bottom(torch.cat([told, latents], 1)), "b d h w -> b (h w) d")

    def to_latents(
        self, top: Float[Tensor, "b m d"], bottom: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c h w"]:
        """Return both grids' codes at the finer grid's size, stacked in channels: C = 2 D."""
        return torch.cat([self.upsample(self._grid(top)), self._grid(bottom)], dim=1)

    def _grid(self, vectors: Float[Tensor, "b n d"]) -> Float[Tensor, "b d h w"]:
        return rearrange(vectors, "b (h w) d -> b d h w", h=int(vectors.shape[1] ** 0.5))


class VQVAE2(ImageTokenizer):
    """Two grids of local tokens: a coarse one, and a finer one that is conditioned on it.

        images
          | encoder                     strided convolutions, residual blocks
        latents (B, codebook_dim, H/f, W/f)
          | token_space.top_vectors     halved again
        z_top      -> top_quantizer ->  codes of the coarse grid
          | token_space.bottom_vectors  of the latents and these codes
        z_bottom   -> quantizer     ->  codes of the fine grid
          | token_space.to_latents      the coarse grid's codes doubled, beside the fine grid's
          | decoder                     residual blocks, transposed convolutions
        images

    It quantises twice, and so composes the pipeline itself. In training the coarse grid is never
    decoded without the fine one, so no prefix of the tokens decodes.

    Args:
        image_size: Height and width, in pixels; divisible by twice ``downsample_factor``.
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f; the fine grid has (image_size / f)^2 tokens and the
            coarse one a quarter of that.
        codebook_size: Codes of the fine grid's codebook.
        top_codebook_size: Codes of the coarse grid's codebook. None: ``codebook_size``.
        codebook_dim: Length of a code; 64 in the paper.
        channels: Hidden channels; 128 in the paper.
        num_blocks: Residual blocks in each of the four networks; 2 in the paper.
        residual_channels: Hidden channels of a residual block; 64 in the paper.
        quantizer: Name or mapping of any registered quantizer, used for each grid.
        reconstruction_loss: ``"l2"`` as in the paper, or ``"l1"``; on the [-1, 1] scale.
    """

    token_space: TwoGrids  # type: ignore[assignment]
    _keep_in_fp32_modules = ["quantizer", "top_quantizer"]  # noqa: RUF012 - diffusers' name

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        downsample_factor: Annotated[int, Field(ge=1)] = 4,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        top_codebook_size: Annotated[int, Field(ge=2)] | None = None,
        codebook_dim: Annotated[int, Field(ge=1)] = 64,
        channels: Annotated[int, Field(ge=2)] = 128,
        num_blocks: Annotated[int, Field(ge=0)] = 2,
        residual_channels: Annotated[int, Field(ge=1)] = 64,
        quantizer: QuantizerOption = "ema",
        reconstruction_loss: Literal["l1", "l2"] = "l2",
    ):
        super().__init__()
        check_divisible(image_size, 2 * downsample_factor)
        size = image_size // downsample_factor
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (codebook_dim, size, size)
        width = {
            "channels": channels,
            "num_blocks": num_blocks,
            "residual_channels": residual_channels,
        }
        at = {"downsample_factor": downsample_factor, **width}
        self.encoder = ConvEncoder(in_channels, codebook_dim, **at)
        self.token_space = TwoGrids(size, codebook_dim, width)
        self.top_quantizer = build_quantizer(
            quantizer,
            dim=codebook_dim,
            num_tokens=(size // 2) ** 2,
            codebook_size=top_codebook_size or codebook_size,
        )
        self.quantizer = build_quantizer(
            quantizer, dim=codebook_dim, num_tokens=size**2, codebook_size=codebook_size
        )
        self.decoder = ConvDecoder(2 * codebook_dim, in_channels, **at)

    @functools.cached_property
    def token_spec(self) -> TokenSpec:
        """The levels of the coarse grid's quantizer, then those of the fine grid's."""
        coarse, fine = self.token_space.shapes
        top = [level.at(coarse) for level in self.top_quantizer.levels]
        return TokenSpec((*top, *(level.at(fine) for level in self.quantizer.levels)))

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The coarse grid's codes, then the fine grid's."""
        return self.top_quantizer.code_tables + self.quantizer.code_tables

    # -- the pipeline ----------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, quantise both grids and decode.

        Args:
            images: In [-1, 1], of ``image_shape``.
        """
        latents = self.encode_latents(images)
        top = self.top_quantizer(self.token_space.top_vectors(latents))
        top_codes = top.z_q.to(latents.dtype)
        bottom = self.quantizer(self.token_space.bottom_vectors(latents, top_codes))
        decoded = self.token_space.to_latents(top_codes, bottom.z_q.to(latents.dtype))
        reconstruction = self.decoder(decoded)
        terms, metrics = self.compare(images, reconstruction), {}
        for name, grid in (("top", top), ("bottom", bottom)):
            terms |= {f"{name}_{key}": value for key, value in grid.losses.items()}
            metrics |= {f"{name}_{key}": value for key, value in grid.metrics.items()}
        indices = self._flatten(top.indices, bottom.indices)
        return TokenizerOutput(reconstruction, indices, terms, metrics)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        """Turn images in [-1, 1] into int64 tokens: the coarse grid's, then the fine one's.

        Raises:
            InputError: If the images are not of ``image_shape``, or not finite.
        """
        self.check_finite(images)
        return self._encode_grids(self.encode_latents(images))

    def decode(
        self, indices: Int[Tensor, "b t"], num_tokens: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Turn tokens into images, about [-1, 1] (not clamped).

        Args:
            indices: int64 tokens, always T per image.
            num_tokens: T or None, since only all tokens decode.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If ``num_tokens`` is any other number, or the decoder overflows.
        """
        total = self.token_spec.num_tokens
        if num_tokens not in (None, total):
            raise InputError(
                f"num_tokens {num_tokens} does not decode on its own; this tokenizer decodes only "
                f"{total} tokens"
            )
        top, bottom = (codes.to(self.dtype) for codes in self._lookup(indices))
        return self.check_decoded(self.decoder(self.token_space.to_latents(top, bottom)))

    def embed(self, indices: Int[Tensor, "b t"]) -> Float[Tensor, "b n d"]:
        """Return the quantised vectors of the tokens, the coarse grid's first."""
        return torch.cat(self._lookup(indices), dim=1)

    def decode_latents(self, latents: Float[Tensor, "b lc lh lw"]) -> Float[Tensor, "b c h w"]:
        """Quantise continuous latents and decode them, as latent diffusion does."""
        return self.decode(self._encode_grids(latents.to(self.dtype)))

    # -- two grids -------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode_grids(self, latents: Float[Tensor, "b lc lh lw"]) -> Int[Tensor, "b t"]:
        top = self.top_quantizer.encode(self.token_space.top_vectors(latents))
        codes = self.top_quantizer.lookup(top).to(latents.dtype)
        bottom = self.quantizer.encode(self.token_space.bottom_vectors(latents, codes))
        return self._flatten(top, bottom)

    def _flatten(self, top: Int[Tensor, "b m k"], bottom: Int[Tensor, "b n l"]) -> Tensor:
        levels = [
            level.reshape(-1, *shape)
            for grid, shape in zip((top, bottom), self.token_space.shapes)
            for level in grid.unbind(-1)
        ]
        return self.token_spec.flatten(levels)

    def _lookup(self, indices: Int[Tensor, "b t"]) -> list[Tensor]:
        self.token_spec.validate(indices)
        levels = [level.flatten(1) for level in self.token_spec.unflatten(indices)]
        num_top = len(self.top_quantizer.levels)
        parts = (self.top_quantizer, levels[:num_top]), (self.quantizer, levels[num_top:])
        return [quantizer.lookup(torch.stack(part, dim=-1)) for quantizer, part in parts]
