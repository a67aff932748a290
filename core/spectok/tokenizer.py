"""The tokenizer contract, and the pipeline of five boxes that every tokenizer follows.

images (B,C,H,W) in [-1,1]
| encoder                 network
latents (B,c,h,w)           continuous and image-shaped
| token_space.to_vectors
z (B,N,D)                   the N units that are quantised
| quantizer               nearest code(s)
indices (B,N,L), z_q (B,N,D)
| token_space.to_latents
latents (B,c,h,w)
| decoder                 network
images (B,C,H,W)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.any_size import AnySizeModel
from spectok.device import send
from spectok.errors import CheckpointError, InputError
from spectok.images import check_values
from spectok.losses.reconstruction import l1, l2
from spectok.modeling import PROCESSOR_FILE
from spectok.outputs import TokenizerOutput
from spectok.processing import ImageProcessor, is_own
from spectok.quantizers import Quantizer, outermost_quantizers
from spectok.remembered import remembered
from spectok.token_space import TokenSpace as TokenSpace
from spectok.token_spec import Order, Prefix, TokenSpec


class ImageTokenizer(AnySizeModel):
    """An autoencoder that turns an image into a short list of integers and back.

    A subclass's constructor, decorated with ``register_to_config``, builds the four boxes
    ``encoder``, ``token_space``, ``quantizer`` and ``decoder``, and sets ``image_shape`` and
    ``latent_shape``. Its annotated signature is the schema of the recipe section ``tokenizer:``.

    Attributes:
        image_shape: ``(C, H, W)`` of the images.
        latent_shape: ``(c, h, w)`` of the latents.
        order: How several levels become one sequence; see :class:`~spectok.TokenSpec`.
        prefix: Whether the start of a sequence decodes on its own. ``"none"`` becomes ``"levels"``
            if whole levels follow one another and the quantizer's first levels decode.
        resize_filter: Pillow's filter with which files of images of other sizes are resized.
        interior: ``(top, left, height, width)`` of the pixels that training compares if the data
            has an added border; None for all. Set by the trainer, not saved.
        recomputed_units: Classes of the modules that ``train.gradient_checkpointing`` computes
            again instead of keeping what is inside them; called, and nothing else, in training.
        fixed_size: Why the weights serve images of one size alone, in words that follow a colon;
            None: they serve any multiple of :attr:`size_multiple`, as those of networks without
            anything learned per place do. A class or its constructor sets it.
    """

    encoder: nn.Module
    token_space: TokenSpace
    quantizer: Quantizer
    decoder: nn.Module
    order: Order = "level"
    prefix: Prefix = "none"
    resize_filter: str = "bicubic"
    interior: tuple[int, int, int, int] | None = None
    recomputed_units: tuple[str, ...] = ("ResidualBlock", "PixelAttention")

    _keep_in_fp32_modules = ["quantizer"]  # noqa: RUF012 - the name diffusers reads

    @remembered
    def token_spec(self) -> TokenSpec:
        """Layout of this tokenizer's tokens: all that priors, caches and samplers read of it."""
        shape = self.token_space.shape
        levels = tuple(level.at(shape) for level in self.quantizer.levels)
        order, prefix = self.order, self.prefix
        if len(levels) == 1:
            order = "level"
        elif prefix == "tokens":
            order = "position"  # a prefix then keeps all levels of the first places
        elif prefix == "none" and order == "level" and self.quantizer.decodes_first_levels:
            prefix = "levels"
        return TokenSpec(levels, order=order, prefix=prefix)

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The codes of each level of ``token_spec``; see :attr:`spectok.Quantizer.code_tables`."""
        return self.quantizer.code_tables

    # -- the pipeline ----------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, quantise and decode; return everything training needs.

        Args:
            images: In [-1, 1], of ``image_shape``.
        """
        z = self.token_space.to_vectors(self.encode_latents(images))
        quantized = self.quantizer(z)
        keep = self.draw_prefix(images.shape[0]) if self.training else None
        if keep is not None:
            keep = send(keep, images.device)
        latents = self.token_space.to_latents(quantized.z_q.to(z.dtype), keep)
        reconstruction = self.decoder(latents)
        losses = self.compare(images, reconstruction) | quantized.losses
        indices = self._to_sequence(quantized.indices)
        return TokenizerOutput(reconstruction, indices, losses, quantized.metrics)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        """Turn images in [-1, 1] into int64 tokens laid out as :attr:`token_spec` says.

        Raises:
            InputError: If the images are not of ``image_shape``, not finite, or far outside
                [-1, 1].
        """
        self.check_finite(images)
        z = self.token_space.to_vectors(self.encode_latents(images))
        return self._to_sequence(self.quantizer.encode(z))

    def decode(
        self, indices: Int[Tensor, "b t"], num_tokens: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Turn tokens into images, about [-1, 1] (not clamped).

        Args:
            indices: int64 tokens, always T per image.
            num_tokens: Use only the first k tokens; :attr:`token_spec` says which k decode.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If a prefix of that length does not decode, or the decoder overflows.
        """
        spec = self.token_spec
        spec.validate(indices)
        self.check_prefix(num_tokens)
        vectors_indices, keep = self._from_sequence(indices), None
        if num_tokens is not None and spec.prefix == "levels":
            level = spec.decodable_prefixes.index(num_tokens) + 1
            vectors_indices = vectors_indices[..., :level]
        elif num_tokens is not None and spec.prefix == "tokens":
            places = num_tokens // spec.num_levels
            keep = torch.full(indices.shape[:1], places, device=indices.device)
        z_q = self.quantizer.lookup(vectors_indices).to(self.dtype)
        return self.check_decoded(self.decoder(self.token_space.to_latents(z_q, keep)))

    def embed(self, indices: Int[Tensor, "b t"]) -> Float[Tensor, "b n d"]:
        """Return the quantised vectors of the tokens."""
        self.token_spec.validate(indices)
        return self.quantizer.lookup(self._from_sequence(indices))

    def encode_latents(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b lc lh lw"]:
        """Return the continuous latents before quantisation, of ``latent_shape``.

        Raises:
            InputError: If the images are not of ``image_shape``.
        """
        return self.encoder(self.prepare(images))

    def decode_latents(self, latents: Float[Tensor, "b lc lh lw"]) -> Float[Tensor, "b c h w"]:
        """Quantise continuous latents and decode them, as latent diffusion does.

        Raises:
            InputError: If they are not finite.
        """
        z = self.token_space.to_vectors(latents.to(self.dtype))
        return self.decode(self._to_sequence(self.quantizer.encode(z)))

    # -- images as people have them --------------------------------------------------------------

    @property
    def data_filter(self) -> str | None:
        """Filter with which data sets are resized for it; None: each by its own."""
        return None

    @property
    def processor(self) -> ImageProcessor:
        """Brings images of any kind and size to batches of this tokenizer's, and back to PIL."""
        return ImageProcessor(self.image_shape, self.resize_filter)

    def encode_rows(
        self, rows: Mapping[str, Sequence[Any]], column: str = "image", tokens: str = "tokens"
    ) -> dict[str, list[list[int]]]:
        """Encode a batch of rows, as ``dataset.map(tokenizer.encode_rows, batched=True)`` wants it.

        Args:
            rows: Column -> values, one of which holds images of any kind that
                :class:`~spectok.processing.ImageProcessor` takes.
            column: The column of the images.
            tokens: The column to return.

        Returns:
            One list of T integers per row.

        Raises:
            InputError: If there is no such column, or a value in it is no image.
        """
        if column not in rows:
            raise InputError(f"rows have no column {column!r}; there are {', '.join(rows)}")
        images = self.processor(list(rows[column])).to(self.device)
        return {tokens: self.encode(images).tolist()}

    def save_more(self, folder: Path, target: Path) -> None:
        """Write ``preprocessor_config.json``, unless the target has the same already."""
        shape = (self.image_shape[0], *self.built_size)
        processor = ImageProcessor(shape, self.resize_filter)
        if (target / PROCESSOR_FILE).is_file():
            with contextlib.suppress(CheckpointError):
                if ImageProcessor.from_pretrained(target).to_dict() == processor.to_dict():
                    return
        processor.save_pretrained(folder)

    def load_more(self, folder: Path) -> None:
        """Check that images are prepared as this version does; earlier models do not say."""
        if is_own(folder):
            found = ImageProcessor.from_pretrained(folder).image_shape
            if found != tuple(self.image_shape):
                raise CheckpointError(
                    f"{folder / PROCESSOR_FILE} is for images of shape {found}, and the model for "
                    f"{tuple(self.image_shape)}; remove it, or save the model again"
                )

    # -- what a subclass may change --------------------------------------------------------------

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last layer, at which adversarial training compares gradients."""
        return [p for p in self.decoder.parameters() if p.ndim >= 2][-1]

    def reconstruction_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms that compare the reconstruction with the images.

        Here the mean error per pixel: absolute where the tokenizer has an option
        ``reconstruction_loss`` and it is ``"l1"``, squared otherwise.
        """
        distance = l1 if self.config.get("reconstruction_loss") == "l1" else l2
        return {"reconstruction": distance(reconstruction, images)}

    def compare(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return :meth:`reconstruction_losses` inside the border; :meth:`forward` calls this."""
        return self.reconstruction_losses(self.inside(images), self.inside(reconstruction))

    def inside(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the part of the images that :attr:`interior` names."""
        if self.interior is None:
            return images
        top, left, height, width = self.interior
        return images[..., top : top + height, left : left + width]

    @property
    def trains_on_images(self) -> bool:
        """Whether the tokenizer's own losses compare images, or latents alone."""
        return True

    def training_data(self, dataset: Any, with_images: bool) -> Any:
        """Return what the trainer reads: the data set, or one with latents computed beforehand.

        Called in every process before the first step, and before a run goes on: a tokenizer that
        measures something on the training data does so here. Where a batch of what it returns has
        ``latents``, they are passed to :meth:`forward` as such.

        Args:
            dataset: A :class:`spectok.data.ImageDataset`.
            with_images: Whether a loss compares images; otherwise they need not be read.
        """
        return dataset

    def draw_prefix(self, batch_size: int) -> Int[Tensor, "b"] | None:
        """Draw how many leading tokens each training image keeps; None to keep all."""
        return None

    def before_step(self) -> None:
        """Call once per optimiser step, after gradients are synchronised and before clipping."""
        for quantizer in outermost_quantizers(self):
            quantizer.before_step()

    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Call once after each optimiser step, on every rank: codebooks are edited here."""
        optimizers = list(optimizers)
        for quantizer in outermost_quantizers(self):
            quantizer.after_step(optimizers)

    def skip_step(self) -> None:
        """Call instead of both if no optimiser step is taken, as when gradients overflow."""
        for quantizer in outermost_quantizers(self):
            quantizer.skip_step()

    # -- shapes ----------------------------------------------------------------------------------

    def check_images(self, images: Tensor) -> None:
        """Check the type and the shape of a batch.

        Raises:
            InputError: If they are not those that this tokenizer takes.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise InputError(
                f"images of type {kind} are not a tensor of floats in [-1, 1]; convert bytes by "
                "images / 127.5 - 1"
            )
        if len(images) == 0:
            raise InputError("images are an empty batch; give at least one")
        if images.ndim != 4 or tuple(images.shape[1:]) != tuple(self.image_shape):
            raise InputError(
                f"images of shape {tuple(images.shape)} do not fit this {type(self).__name__}: it "
                f"takes (B, {', '.join(map(str, self.image_shape))}); resize or crop them"
                f"{'' if self.why_fixed_size() else ', or use at_size'}"
            )

    def check_prefix(self, num_tokens: int | None) -> None:
        """Check that the first ``num_tokens`` tokens decode on their own; None stands for all.

        Raises:
            InputError: Names the numbers of tokens that do.
        """
        if num_tokens is not None and num_tokens not in self.token_spec.decodable_prefixes:
            raise InputError(
                f"num_tokens {num_tokens} does not decode on its own; this tokenizer decodes "
                f"{_describe_prefixes(self.token_spec)}"
            )

    def prepare(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Check a batch, and bring it to the type of the weights.

        Values are checked on a CPU, where it costs nothing; :meth:`check_finite` checks them
        everywhere.

        Raises:
            InputError: If type, shape or, on a CPU, values are not those of images in [-1, 1].
        """
        self.check_images(images)
        if images.device.type == "cpu":  # on a GPU this would wait in each step
            check_values(images)
        return images.to(self.dtype)

    def check_finite(self, images: Float[Tensor, "b c h w"]) -> None:
        """Check a batch as :meth:`check_images` does, and its values; waits for the device.

        Raises:
            InputError: If a pixel is infinite or NaN, or far outside [-1, 1]; see
                :func:`spectok.images.check_values`.
        """
        self.check_images(images)
        check_values(images)

    def check_decoded(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return decoded images if all their values are finite; waits for the device.

        Raises:
            InputError: If a pixel is infinite or NaN.
        """
        checked = not (images.is_meta or torch.compiler.is_compiling())
        if checked and not images.isfinite().all():
            raise InputError(
                "decoded images are infinite or NaN: the decoder overflows "
                f"{str(images.dtype).removeprefix('torch.')}, or its weights are damaged; use "
                f"float32, or train it again"
            )
        return images

    def _to_sequence(self, indices: Int[Tensor, "b n l"]) -> Int[Tensor, "b t"]:
        shape = self.token_space.shape
        return self.token_spec.flatten([part.reshape(-1, *shape) for part in indices.unbind(-1)])

    def _from_sequence(self, indices: Int[Tensor, "b t"]) -> Int[Tensor, "b n l"]:
        levels = self.token_spec.unflatten(indices)
        return torch.stack([level.flatten(1) for level in levels], dim=-1)


def check_divisible(image_size: int, factor: int) -> None:
    """Check that a downsample factor divides the image size.

    Raises:
        InputError: Names the nearest larger size that works.
    """
    if image_size % factor:
        fit = (image_size // factor + 1) * factor
        raise InputError(
            f"image_size {image_size} is not divisible by downsample_factor {factor}; resize or "
            f"crop to a multiple, e.g. {fit}"
        )


def _describe_prefixes(spec: TokenSpec) -> str:
    if spec.prefix == "tokens":
        unit = f"multiple of {spec.num_levels}" if spec.num_levels > 1 else "number of tokens"
        return f"any {unit} from 0 to {spec.num_tokens}"
    lengths: Any = ", ".join(map(str, spec.decodable_prefixes))
    return f"only {lengths} tokens"
