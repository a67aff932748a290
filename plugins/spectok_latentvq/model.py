"""Vector quantisation in the latent space of a pretrained autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from spectok.errors import CheckpointError, ConfigError
from spectok.loading import build_quantizer
from spectok.messages import note
from spectok.nn import GridTokens
from spectok.outputs import TokenizerOutput
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer, TokenSpace, check_divisible
from spectok_latentvq.autoencoder import open_autoencoder
from spectok_latentvq.latents import cached_latents, encoded, spread_rows
from spectok_latentvq.token_space import FrequencyTokens, GlobalTokens, Kind, StandardTokens

FIXED: dict[Kind, str] = {
    "global": "each of its tokens describes the whole image, through affine maps of that size",
    "frequency": "each of its tokens is a frequency of the whole image, scaled as measured at that "
    "size",
}
"""Token spaces whose tokens are no places -> why they serve one size."""


class LatentVQ(ImageTokenizer):
    """Any quantizer in the latent space of an ``AutoencoderKL``, ``-DC`` or ``-Tiny`` of diffusers.

        images
          | encoder       the autoencoder's, frozen: the mean of its latents
        latents (B, c, H/f, W/f)
          | token_space   channels standardised by measured statistics; a grid, a global list, or
          |               frequencies
        z
          | quantizer     any registered one; trained
        z_q
          | token_space   back, and back to the autoencoder's scale
        latents
          | decoder       the autoencoder's: frozen, or trained too
        images

    The two stages in this order, a continuous autoencoder first and a discrete code of its latents
    after it, train in seconds what takes a VQ-VAE hours, since no network is trained and the
    encoder sees each image once: :meth:`training_data` keeps the latents on disk. The loss is the
    mean squared error of the standardised latents, besides the quantizer's own terms.

    The autoencoder's config is saved with the tokenizer, and its weights with the tokenizer's: a
    saved folder needs nothing else.

    A grid of tokens takes images of any multiple of f, standardised by the statistics that were
    measured at the size it was trained at: they are of channels, not of places.

    Args:
        image_size: Height and width, in pixels; divisible by the autoencoder's factor f.
        in_channels: Channels that the autoencoder takes.
        autoencoder: Its folder, or hub id (``"owner/name"``, ``"owner/name/subfolder"``), or its
            config, which has no weights. None: a small one with random weights.
        token_space: ``"grid"``: a vector of c numbers per latent pixel. ``"global"``: QG-VAE's list
            of ``num_tokens`` vectors of ``codebook_dim`` numbers, through learned affine maps.
            ``"frequency"``: a vector of c numbers per frequency of the latents, from low to high;
            any first ones decode.
        num_tokens: Tokens of the global list.
        codebook_size: Codes per codebook.
        codebook_dim: Length of a vector of the global list.
        quantizer: Name or mapping of any registered quantizer.
        token_order: Where a vector has several codes: ``"level"``: the first of all places, then
            the second ones; ``"position"``: all of a place, then the next place.
        train_decoder: Train the decoder, too, on the error of the pixels; they are then read.
        reconstruction_loss: That error: ``"l2"`` or ``"l1"``, on the [-1, 1] scale.

    Raises:
        ConfigError: If the autoencoder is none of the three kinds, or takes other channels.
        InputError: If its factor does not divide ``image_size``.
        CheckpointError: If its folder, its download or its weights are missing or damaged.
    """

    token_space: StandardTokens
    fixed_size = None
    recomputed_units = ("ResnetBlock2D", "ResBlock", "EfficientViTBlock", "AutoencoderTinyBlock")

    @register_to_config
    def __init__(
        self,
        image_size: Annotated[int, Field(ge=1)] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        autoencoder: str | dict[str, Any] | None = None,
        token_space: Kind = "grid",
        num_tokens: Annotated[int, Field(ge=1)] = 64,
        codebook_size: Annotated[int, Field(ge=2)] = 512,
        codebook_dim: Annotated[int, Field(ge=1)] = 16,
        quantizer: QuantizerOption = "ema",
        token_order: Literal["level", "position"] = "level",
        train_decoder: bool = False,
        reconstruction_loss: Literal["l1", "l2"] = "l2",
    ):
        super().__init__()
        network = open_autoencoder(autoencoder, in_channels)
        self.register_to_config(autoencoder=network.config)
        self.pretrained, self.decodes = network.pretrained, True
        check_divisible(image_size, network.factor)
        size, channels = image_size // network.factor, network.latent_channels
        self.image_shape = (in_channels, image_size, image_size)
        self.latent_shape = (channels, size, size)
        self.order = token_order
        self.encoder = network.encoder.requires_grad_(False)
        inner = self._read_as(token_space, num_tokens, codebook_dim)
        self.fixed_size = FIXED.get(token_space)
        self.token_space = StandardTokens(inner, channels)
        self.quantizer = build_quantizer(
            quantizer, dim=inner.dim, num_tokens=inner.num_tokens, codebook_size=codebook_size
        )
        self.decoder = network.decoder.requires_grad_(train_decoder)
        self.train()

    def _read_as(self, kind: Kind, num_tokens: int, dim: int) -> TokenSpace:
        channels, height, width = self.latent_shape
        if kind == "grid":
            return GridTokens(height, width, channels)
        if kind == "global":
            return GlobalTokens(channels, num_tokens, height=height, width=width, dim=dim)
        self.prefix = "tokens"
        return FrequencyTokens(height, width, channels)

    @classmethod
    def _check(cls, saved: dict[str, Any], stored: Any, place: str, trust: bool) -> None:
        if not isinstance(saved.get("autoencoder"), Mapping):
            raise CheckpointError(
                f"{place} has no config of its autoencoder in config.json; copy or save it again"
            )
        super()._check(saved, stored, place, trust)

    @property
    def trains_on_images(self) -> bool:
        """Whether the decoder is trained."""
        return bool(self.config["train_decoder"])

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last layer.

        Raises:
            ConfigError: If the decoder is frozen: no gradient is there to compare.
        """
        if not self.trains_on_images:
            raise ConfigError(
                "adversarial.adaptive compares gradients at the decoder's last layer, and the "
                "decoder is frozen; set tokenizer.train_decoder=true, or adversarial.adaptive=false"
            )
        return super().last_layer

    def train(self, mode: bool = True) -> LatentVQ:
        """Switch to training, in which what is frozen stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        self.decoder.train(mode and self.trains_on_images)
        return self

    def forward(
        self,
        images: Float[Tensor, "b c h w"] | None = None,
        latents: Float[Tensor, "b lc lh lw"] | None = None,
    ) -> TokenizerOutput:
        """Quantise the latents, and decode them if that is of use.

        Args:
            images: In [-1, 1], of ``image_shape``. None: nothing is decoded.
            latents: The encoder's latents of these images. None: they are computed.

        Returns:
            Without images, and in training that needs none, a reconstruction of no images.
        """
        if latents is None:
            if images is None:
                raise ConfigError("neither images nor latents are given; give either")
            latents = self.encode_latents(images)
        elif images is not None:
            images = self.prepare(images)
        latents = latents.to(self.dtype)
        quantized = self.quantizer(self.token_space.to_vectors(latents))
        decodable = self.token_space.to_latents(quantized.z_q.to(latents.dtype))
        error = (decodable.float() - latents.float()) / self.token_space.deviation[:, None, None]
        losses = {"latent": error.square().mean()}
        reconstruction = latents.new_empty(0, *self.image_shape)
        if images is not None and (self.decodes or not self.training):
            reconstruction = self.decoder(decodable)
            if self.trains_on_images:
                losses |= self.compare(images, reconstruction)
        indices = self._to_sequence(quantized.indices)
        return TokenizerOutput(
            reconstruction, indices, losses | quantized.losses, quantized.metrics
        )

    def training_data(self, dataset: Any, with_images: bool) -> Any:
        """Measure the latents' statistics, and return the data with its latents from a cache.

        Statistics that are there already, of ``init_from``, stay. Images that change from epoch to
        epoch are encoded anew in each step.
        """
        self.decodes = with_images
        if not self.pretrained and not self.token_space.num_measured:
            note(
                "the autoencoder has random weights, and its encoder keeps them; "
                "tokenizer.autoencoder names the folder or hub id of a trained one"
            )
        if dataset.augments:
            note(
                "data.horizontal_flip and data.max_shift change the images in each epoch, so their "
                "latents are computed anew in each step, not cached"
            )
            found, latents = dataset, encoded(self.encoder, dataset, spread_rows(len(dataset)))
        else:
            config = dict(self.config["autoencoder"])
            found = cached_latents(self.encoder, config, dataset, self.latent_shape, with_images)
            latents = found.batches()
        if not self.token_space.num_measured:
            self.token_space.measure(latents)
        return found
