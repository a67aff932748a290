"""VQ-VAE-2: Generating Diverse High-Fidelity Images, Razavi, van den Oord and Vinyals, 2019."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok.loading import build_quantizer
from spectok.nn import ConvDecoder, ConvEncoder
from spectok.outputs import TokenizerOutput
from spectok.recipes.schema import QuantizerOption
from spectok.remembered import remembered
from spectok.sizes import scaled
from spectok.token_spec import TokenSpec
from spectok.tokenizer import ImageTokenizer, check_divisible


class GridPair(nn.Module):
    """What lies between a grid and the next coarser one.

    Args:
        dim: Channels of the latents, and length of a vector on either grid.
        told_dim: Channels of the codes of all coarser grids, at the coarser one's size.
        width: ``channels``, ``num_blocks`` and ``residual_channels`` of the networks.
    """

    def __init__(self, dim: int, told_dim: int, width: Mapping[str, int]):
        super().__init__()
        self.to_top = ConvEncoder(dim, dim, downsample_factor=2, **width)
        self.from_top = ConvDecoder(told_dim, dim, downsample_factor=2, **width)
        self.to_bottom = nn.Conv2d(2 * dim, dim, 1)
        self.upsample = nn.ConvTranspose2d(told_dim, told_dim, 4, stride=2, padding=1)


class Grids(GridPair):
    """How latents become the vectors of several grids, each conditioned on the coarser ones' codes.

    The two finest grids are the pair that this module itself is; ``coarser`` holds one pair for
    each grid above them. With G grids of D channels, grid g's codes are stacked on the coarser
    ones', doubled, which makes (g + 1) D channels and in the end the G D that are decoded.

    Args:
        size: Height and width of the finest grid; divisible by 2^(num_grids - 1).
        dim: Channels D of the latents, and length of a vector on any grid.
        num_grids: Number G of grids; at least 2.
        width: ``channels``, ``num_blocks`` and ``residual_channels`` of the networks between grids.

    Attributes:
        shapes: Layouts of the grids, coarse to fine.
    """

    def __init__(self, size: int, dim: int, num_grids: int, width: Mapping[str, int]):
        super().__init__(dim, (num_grids - 1) * dim, width)
        sizes = [size >> (num_grids - 1 - grid) for grid in range(num_grids)]
        self.shapes = [(size, size) for size in sizes]
        self.coarser = nn.ModuleList(
            GridPair(dim, grid * dim, width) for grid in range(1, num_grids - 1)
        )

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Change the layouts to those of images of another size: called on a copy."""
        self.shapes = [(scaled(h, rows), scaled(w, columns)) for h, w in self.shapes]

    @property
    def pairs(self) -> list[Any]:
        """The pairs of neighbouring grids, coarse to fine."""
        return [*self.coarser, self]

    def pyramid(self, latents: Float[Tensor, "b d h w"]) -> list[Float[Tensor, "b d _ _"]]:
        """Return the latents of each grid, coarse to fine; those of the finest are the given ones.

        Each is made from the next finer one: ``h_top = E_top(E_bottom(x))`` of Algorithm 1.
        """
        maps = [latents]
        for pair in reversed(self.pairs):
            maps.append(pair.to_top(maps[-1]))
        return maps[::-1]

    def to_vectors(
        self, grid: int, latents: Float[Tensor, "b d h w"], told: Float[Tensor, "b e _ _"] | None
    ) -> Float[Tensor, "b n d"]:
        """Return the vectors of a grid: h_top of Algorithm 1, then h_bottom.

        Args:
            grid: Number of the grid; 0 is the coarsest.
            latents: That grid's, from :meth:`pyramid`.
            told: The codes of all coarser grids, from :meth:`stack`; None for the coarsest.
        """
        if told is not None:
            pair = self.pairs[grid - 1]
            latents = pair.to_bottom(torch.cat([pair.from_top(told), latents], dim=1))
        return rearrange(latents, "b d h w -> b (h w) d")

    def stack(
        self, grid: int, z_q: Float[Tensor, "b n d"], told: Float[Tensor, "b e _ _"] | None
    ) -> Float[Tensor, "b f h w"]:
        """Return a grid's codes below those of all coarser grids, in channels, at its own size.

        Args:
            grid: Number of the grid; 0 is the coarsest.
            z_q: Its codes.
            told: The same of the next coarser grid; None for the coarsest.
        """
        codes = rearrange(z_q, "b (h w) d -> b d h w", h=self.shapes[grid][0])
        if told is None:
            return codes
        return torch.cat([self.pairs[grid - 1].upsample(told), codes], dim=1)


class VQVAE2(ImageTokenizer):
    """Grids of local tokens, each twice as fine as the one before, and conditioned on it.

        images
          | encoder                     strided convolutions, residual blocks
        latents (B, codebook_dim, H/f, W/f)
          | token_space.pyramid         halved again for each coarser grid
          | token_space.to_vectors      the coarsest grid's
        z_top      -> top_quantizer ->  codes of the coarse grid
          | token_space.to_vectors      of the next grid's latents and these codes
        z_bottom   -> quantizer     ->  codes of the fine grid
          | token_space.stack           the coarse grid's codes doubled, beside the fine grid's
          | decoder                     residual blocks, transposed convolutions
        images

    Drawn for two grids. Each further one lies between these, with a quantizer of its own in
    ``middle_quantizers``, and sees the codes of all coarser ones.

    It quantises several times, and so composes the pipeline itself. In training no grid is ever
    decoded without the others, so no prefix of the tokens decodes.

    Args:
        image_size: Height and width, in pixels; divisible by ``downsample_factor`` times
            2^(num_grids - 1).
        in_channels: 1 for grey, 3 for colour.
        downsample_factor: Power of two f; the finest grid has (image_size / f)^2 tokens and each
            coarser one a quarter of the one below it.
        num_grids: Number of grids; 2 in the paper for ImageNet, 3 for faces of 1024 pixels.
        codebook_size: Codes of each grid's codebook.
        top_codebook_size: Codes of the coarsest grid's codebook. None: ``codebook_size``.
        codebook_dim: Length of a code; 64 in the paper.
        channels: Hidden channels; 128 in the paper.
        num_blocks: Residual blocks in each of the networks; 2 in the paper.
        residual_channels: Hidden channels of a residual block; 64 in the paper.
        quantizer: Name or mapping of any registered quantizer, used for each grid.
        reconstruction_loss: ``"l2"`` as in the paper, or ``"l1"``; on the [-1, 1] scale.

    Raises:
        InputError: If sizes do not fit together.
    """

    token_space: Grids  # type: ignore[assignment]
    _keep_in_fp32_modules = ["quantizer", "top_quantizer", "middle_quantizers"]  # noqa: RUF012

    added_options: ClassVar[Mapping[str, Any]] = {"num_grids": 2}

    fixed_size = None

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=4)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        downsample_factor: Annotated[int, Field(ge=1)] = 4,
        num_grids: Annotated[int, Field(ge=2, le=10)] = 2,
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
        check_divisible(image_size, 2 ** (num_grids - 1) * downsample_factor)
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
        self.token_space = Grids(size, codebook_dim, num_grids, width)
        tokens = [height * width for height, width in self.token_space.shapes]
        build = functools.partial(build_quantizer, quantizer, dim=codebook_dim)
        self.top_quantizer = build(
            num_tokens=tokens[0], codebook_size=top_codebook_size or codebook_size
        )
        self.middle_quantizers = nn.ModuleList(
            build(num_tokens=between, codebook_size=codebook_size) for between in tokens[1:-1]
        )
        self.quantizer = build(num_tokens=tokens[-1], codebook_size=codebook_size)
        self.decoder = ConvDecoder(num_grids * codebook_dim, in_channels, **at)

    @property
    def grid_quantizers(self) -> list[Any]:
        """The quantizer of each grid, coarse to fine."""
        return [self.top_quantizer, *self.middle_quantizers, self.quantizer]

    @property
    def grid_names(self) -> list[str]:
        """What losses and metrics call each grid: ``top``, then ``middle1``, …, then ``bottom``."""
        between = len(self.middle_quantizers)
        numbers = [""] if between == 1 else [str(number + 1) for number in range(between)]
        return ["top", *(f"middle{number}" for number in numbers), "bottom"]

    @remembered
    def token_spec(self) -> TokenSpec:
        """The levels of each grid's quantizer, from the coarsest grid to the finest."""
        grids = zip(self.grid_quantizers, self.token_space.shapes)
        return TokenSpec(
            tuple(level.at(shape) for quantizer, shape in grids for level in quantizer.levels)
        )

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The codes of each grid, coarse to fine."""
        return tuple(t for quantizer in self.grid_quantizers for t in quantizer.code_tables)

    # -- the pipeline ----------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, quantise each grid and decode.

        Args:
            images: In [-1, 1], of ``image_shape``.
        """
        codes, outputs = None, []
        pyramid = self.token_space.pyramid(self.encode_latents(images))
        for grid, (quantizer, latents) in enumerate(zip(self.grid_quantizers, pyramid)):
            outputs.append(quantizer(self.token_space.to_vectors(grid, latents, codes)))
            codes = self.token_space.stack(grid, outputs[-1].z_q.to(latents.dtype), codes)
        reconstruction = self.decoder(codes)
        terms, metrics = self.compare(images, reconstruction), {}
        for name, output in zip(self.grid_names, outputs):
            terms |= {f"{name}_{key}": value for key, value in output.losses.items()}
            metrics |= {f"{name}_{key}": value for key, value in output.metrics.items()}
        indices = self._flatten([output.indices for output in outputs])
        return TokenizerOutput(reconstruction, indices, terms, metrics)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        """Turn images in [-1, 1] into int64 tokens: the coarsest grid's first.

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
        self.check_prefix(num_tokens)
        codes = None
        for grid, z_q in enumerate(self._lookup(indices)):
            codes = self.token_space.stack(grid, z_q.to(self.dtype), codes)
        return self.check_decoded(self.decoder(codes))

    def embed(self, indices: Int[Tensor, "b t"]) -> Float[Tensor, "b n d"]:
        """Return the quantised vectors of the tokens, the coarsest grid's first."""
        return torch.cat(self._lookup(indices), dim=1)

    def decode_latents(self, latents: Float[Tensor, "b lc lh lw"]) -> Float[Tensor, "b c h w"]:
        """Quantise continuous latents and decode them, as latent diffusion does."""
        return self.decode(self._encode_grids(latents.to(self.dtype)))

    # -- grids -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode_grids(self, latents: Float[Tensor, "b lc lh lw"]) -> Int[Tensor, "b t"]:
        told, indices = None, []
        pyramid = self.token_space.pyramid(latents)
        for grid, (quantizer, part) in enumerate(zip(self.grid_quantizers, pyramid)):
            indices.append(quantizer.encode(self.token_space.to_vectors(grid, part, told)))
            told = self.token_space.stack(grid, quantizer.lookup(indices[-1]).to(part.dtype), told)
        return self._flatten(indices)

    def _flatten(self, grids: list[Int[Tensor, "b _ _"]]) -> Int[Tensor, "b t"]:
        levels = [
            level.reshape(-1, *shape)
            for indices, shape in zip(grids, self.token_space.shapes)
            for level in indices.unbind(-1)
        ]
        return self.token_spec.flatten(levels)

    def _lookup(self, indices: Int[Tensor, "b t"]) -> list[Float[Tensor, "b _ d"]]:
        self.token_spec.validate(indices)
        levels = iter([level.flatten(1) for level in self.token_spec.unflatten(indices)])
        return [
            quantizer.lookup(torch.stack([next(levels) for _ in quantizer.levels], dim=-1))
            for quantizer in self.grid_quantizers
        ]
