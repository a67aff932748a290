"""AutoencoderVidTok of diffusers with finite scalar quantisation, on single images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import AutoencoderVidTok
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok import ConfigError, ForeignFolder
from spectok.messages import note
from spectok_pretrained.boxes import LibraryQuantizer, LibraryTokenizer, PixelScale, build
from spectok_pretrained.processing import ImageProcessor, processing_options
from spectok_pretrained.vq_model import library_options

USUAL_SIZE = 256
"""Side of the images that VidTok was trained on, and of the library's tiles."""


class StillVideoEncoder(nn.Module):
    """An image, repeated as often as the network compresses time, to one frame of latents.

    Args:
        model: The library's model.
        scale: Brings images to the numbers the network takes.
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.network, self.scale = model.encoder, scale
        self.frames = model.temporal_compression_ratio

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d lh lw"]:
        """Return the latents before quantisation."""
        begin_clip(self.network)
        clip = repeat(self.scale.to_network(images), "b c h w -> b c t h w", t=self.frames)
        return self.network(clip.contiguous())[:, :, 0]


class StillVideoDecoder(nn.Module):
    """One frame of quantised latents to the image that it stands for.

    Args:
        model: The library's model.
        scale: Brings what the network makes to [-1, 1].
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.network, self.scale = model.decoder, scale
        self.frames = model.temporal_compression_ratio

    def forward(self, latents: Float[Tensor, "b d lh lw"]) -> Float[Tensor, "b c h w"]:
        """Return the images: the last of the clip, because a causal network pads at the front."""
        begin_clip(self.network)
        clip = self.network(latents.contiguous().unsqueeze(2))
        return self.scale.to_images(clip[:, :, self.frames - 1])


def begin_clip(network: nn.Module) -> None:
    """Make the causal layers of a network forget the clip before this one."""
    for module in network.modules():
        if hasattr(module, "causal_cache"):
            module.causal_cache = None  # type: ignore[assignment]
        if hasattr(module, "is_first_chunk"):
            module.is_first_chunk = True  # type: ignore[assignment]


class ScalarQuantizer(LibraryQuantizer):
    """The library's finite scalar quantiser: each number of a vector becomes one of 8."""

    @staticmethod
    def size_of(network: Any) -> tuple[int, int]:
        """Return the number of vectors, and their length."""
        return network.codebook_size, network.dim

    @property
    def code_tables(self) -> tuple[None]:
        """None: codes are given by a formula."""
        return (None,)

    def search(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "..."]:
        """Return the indices."""
        return self.network(latents.unsqueeze(2))[1]

    def codes(self) -> Float[Tensor, "k d"]:
        """Return the vectors of all indices."""
        network: Any = self.network
        return network.implicit_codebook

    def lookup(self, indices: Int[Tensor, "b n 1"]) -> Float[Tensor, "b n d"]:
        """Return the vectors that indices stand for."""
        network: Any = self.network
        return network.indices_to_codes(indices.squeeze(-1))


class PretrainedVidTok(LibraryTokenizer):
    """AutoencoderVidTok of diffusers, frozen: a tokenizer of videos, here of still images."""

    encoder_box: ClassVar[type[nn.Module]] = StillVideoEncoder
    quantizer_box: ClassVar[type[LibraryQuantizer]] = ScalarQuantizer
    decoder_box: ClassVar[type[nn.Module]] = StillVideoDecoder
    quantizer_part: ClassVar[str] = "regularization"
    weights_stem: ClassVar[str] = "diffusion_pytorch_model"
    renamed: ClassVar[Mapping[str, str]] = {
        "encoder.": "encoder.network.",
        "decoder.": "decoder.network.",
        "regularization.": "quantizer.network.",
    }

    @classmethod
    def make_network(cls, network: Mapping[str, Any]) -> Any:
        """Return the library's model, with random weights."""
        check_still(network)
        return build(AutoencoderVidTok, network)

    @staticmethod
    def factor_of(config: Any) -> int:
        """Return how many pixels a latent pixel stands for, each way."""
        halved = config.get("spatial_ds")
        times = len(config.get("ch_mult", (1, 2, 4, 4))) - 1 if halved is None else len(halved)
        return 2**times

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`.

        diffusers has no processor for it; the authors scale images to [-1, 1].
        """
        network = library_options(AutoencoderVidTok, saved)
        check_still(network)
        size = USUAL_SIZE if image_size is None else image_size
        factor = cls.factor_of(network)
        note(
            f"{saved.place}: such models come without a processor; images are scaled to [-1, 1], "
            f"as its authors do, and have {size}×{size} pixels"
        )
        return {"network": network} | processing_options(
            ImageProcessor(), network.get("in_channels", 3), size, factor, saved.place
        )


def check_still(network: Mapping[str, Any]) -> None:
    """Refuse a VidTok that has no tokens, or that decodes no single frame.

    Raises:
        ConfigError: Names the option.
    """
    if network.get("regularizer", "kl") != "fsq":
        raise ConfigError(
            f"an AutoencoderVidTok with regularizer {network.get('regularizer', 'kl')!r} has "
            f"continuous latents and no tokens; load one with 'fsq'"
        )
    if not network.get("is_causal", True):
        raise ConfigError(
            "an AutoencoderVidTok that is not causal decodes no single frame; load one with "
            "is_causal true"
        )
