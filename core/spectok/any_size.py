"""Models of images whose weights may serve other sizes than the one they were trained at."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from spectok.errors import InputError
from spectok.modeling import SpectokModel
from spectok.sizes import ImageSize, as_size, rescaled, scaled, size_of, times
from spectok.tiling import decode_tiles, encode_tiles, plan_tiles
from spectok.token_spec import TokenSpec

Model = TypeVar("Model", bound="AnySizeModel")


class AnySizeModel(SpectokModel):
    """What a tokenizer says of image sizes, and how it takes others: whole or in tiles.

    Attributes:
        image_shape: ``(C, H, W)`` of the images.
        latent_shape: ``(c, h, w)`` of the latents.
        token_spec: Layout of the tokens.
        fixed_size: Why the weights serve images of one size alone, in words that follow a colon;
            None: they serve any multiple of :attr:`size_multiple`, as those of networks without
            anything learned per place do. A class or its constructor sets it.
    """

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    token_spec: TokenSpec
    fixed_size: str | None = "its class does not say that its networks take others"
    _built_size: tuple[int, int] | None = None

    @property
    def size_multiple(self) -> int:
        """Pixels of which the height and the width of images are multiples: a token's side."""
        return self.image_shape[1] // min(level.shape[0] for level in self.token_spec.levels)

    @property
    def built_size(self) -> tuple[int, int]:
        """Height and width that the tokenizer was built for, also after :meth:`at_size`."""
        return self._built_size or (self.image_shape[1], self.image_shape[2])

    def why_fixed_size(self) -> str | None:
        """Return why images must be of ``image_shape``; None if they need not."""
        if self.fixed_size is not None:
            return self.fixed_size
        levels = self.token_spec.levels
        if any(len(level.shape) == 1 for level in levels):
            return "its tokens are a list, not a grid"
        if any(level.codebook == "position" for level in levels):
            return "its quantizer has several codebooks, each for some places of the grid"
        return None

    def check_size(self, image_size: ImageSize) -> None:
        """Check that the weights serve images of a size.

        Raises:
            InputError: If not; says why, and what to do instead.
        """
        size, own, name = as_size(image_size), self.image_shape[1:], type(self).__name__
        if size == own:
            return
        if reason := self.why_fixed_size():
            raise InputError(
                f"this {name} takes images of {times(own)} pixels, not {times(size)}: {reason}; "
                f"resize them, or cut them into tiles of {times(own)}"
            )
        step = self.size_multiple
        if size[0] % step or size[1] % step:
            larger = [max(1, -(-side // step)) * step for side in size]
            raise InputError(
                f"image_size {times(size)} is not a multiple of {step}, which this {name} needs; "
                f"crop or pad, e.g. to {larger[0]}×{larger[1]}"
            )

    def at_size(self: Model, image_size: ImageSize) -> Model:
        """Return this tokenizer for images of another size: the same weights, not a copy of them.

        Its ``image_shape``, ``latent_shape`` and ``token_spec`` are those of the other size.
        It is for use, not for training, and saved as the tokenizer it came from, whose own size
        stays what it was trained with.

        Args:
            image_size: Height and width in pixels, or one number for both.

        Raises:
            InputError: If the weights do not serve that size, or the model is in training mode.
        """
        self.check_size(image_size)
        size, own = as_size(image_size), self.image_shape[1:]
        if size == own:
            return self
        if self.training:
            raise InputError(
                f"a {type(self).__name__} in training mode keeps its size; call eval() first"
            )
        twin = rescaled(self, Fraction(size[0], own[0]), Fraction(size[1], own[1]))
        twin._built_size = self.built_size
        return twin

    def token_spec_at(self, image_size: ImageSize) -> TokenSpec:
        """Return the layout of the tokens of images of another size; see :meth:`at_size`."""
        self.check_size(image_size)
        size, own = as_size(image_size), self.image_shape[1:]
        if size == own:
            return self.token_spec
        return rescaled(self, Fraction(size[0], own[0]), Fraction(size[1], own[1])).token_spec

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Change the shapes to those for another size: called on a copy by :meth:`at_size`.

        Args:
            rows: New height of the images / height they had.
            columns: The same of the width.
        """
        (channels, height, width), (depth, tall, wide) = self.image_shape, self.latent_shape
        self.image_shape = (channels, scaled(height, rows), scaled(width, columns))
        self.latent_shape = (depth, scaled(tall, rows), scaled(wide, columns))

    def train(self: Model, mode: bool = True) -> Model:
        """Set the mode.

        Raises:
            InputError: If a tokenizer from :meth:`at_size` is to be trained.
        """
        if mode and self._built_size is not None:
            raise InputError(
                "a tokenizer at another size than its own is not trained; train the one it came "
                "from, or build one of this size"
            )
        return super().train(mode)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        tile: ImageSize | None = None,
        overlap: int | None = None,
        pad: bool = True,
    ) -> Float[Tensor, "b c h w"]:
        """Encode and decode images of any size, whole or in tiles.

        Args:
            images: In [-1, 1].
            tile: Size of the tiles, in pixels; None: the whole image. See
                :func:`~spectok.tiling.plan_tiles` for this and the next two.
            overlap: Pixels that neighbouring tiles share; they are blended there.
            pad: Whether to continue images that do not fit by their mirror image.

        Raises:
            InputError: If the images are no batch, or the tokenizer does not take such sizes.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise InputError(f"images {describe_images(images)} are not a tensor (B, C, H, W)")
        channels = self.image_shape[0]
        if images.shape[1] != channels:
            raise InputError(
                f"images of shape {tuple(images.shape)} do not fit this {type(self).__name__}: it "
                f"takes (B, {channels}, H, W)"
            )
        tiling = plan_tiles(self, size_of(images), tile=tile, overlap=overlap, pad=pad)
        return decode_tiles(self, encode_tiles(self, images, tiling), tiling)


def describe_images(images: Any) -> str:
    """Return what was given for images, for messages."""
    return f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"{type(images)}"
