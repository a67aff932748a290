"""AutoencoderVidTok of diffusers with finite scalar quantisation, on single images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from diffusers import AutoencoderVidTok
from diffusers.configuration_utils import register_to_config
from einops import repeat
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import ConfigError, ForeignFolder
from spectok.messages import note
from spectok_pretrained.boxes import (
    LibraryQuantizer,
    LibraryTokenizer,
    PixelScale,
    build,
    grid_of,
)
from spectok_pretrained.processing import Filter, ImageProcessor, processing_options
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
    """AutoencoderVidTok of diffusers, frozen: a tokenizer of videos, here of still images.

    Args:
        network: The library's options, as in its ``config.json``; ``regularizer`` is ``"fsq"``.
        image_size: Height and width, in pixels; divisible by 2^(spatial downsamplings).
        image_mean: What the network's images have subtracted, of pixels in [0, 1].
        image_std: What they are then divided by.
        resample: Pillow's filter with which its images are resized.

    Raises:
        ConfigError: If the options are not the library's, or images have no tokens with them.
        InputError: If sizes do not fit together.
    """

    weights_stem: ClassVar[str] = "diffusion_pytorch_model"
    renamed: ClassVar[Mapping[str, str]] = {
        "encoder.": "encoder.network.",
        "decoder.": "decoder.network.",
        "regularization.": "quantizer.network.",
    }

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        image_size: Annotated[int, Field(ge=1)] = USUAL_SIZE,
        image_mean: tuple[float, ...] = (0.5,),
        image_std: tuple[Annotated[float, Field(gt=0)], ...] = (0.5,),
        resample: Filter = "bicubic",
    ):
        super().__init__()
        check_still(network)
        model, scale = build(AutoencoderVidTok, network), PixelScale(image_mean, image_std)
        grid = grid_of(image_size, 2 ** len(model.encoder.spatial_ds))
        self.assemble(
            StillVideoEncoder(model, scale),
            ScalarQuantizer(
                model.regularization,
                dim=model.regularization.dim,
                grid=grid,
                codebook_size=model.regularization.codebook_size,
            ),
            StillVideoDecoder(model, scale),
            (model.config.in_channels, image_size, image_size),
            resample,
        )

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`.

        diffusers has no processor for it; the authors scale images to [-1, 1].
        """
        network = library_options(AutoencoderVidTok, saved)
        check_still(network)
        halved = network.get("spatial_ds")
        times = len(network.get("ch_mult", (1, 2, 4, 4))) - 1 if halved is None else len(halved)
        size = USUAL_SIZE if image_size is None else image_size
        note(
            f"{saved.place}: such models come without a processor; images are scaled to [-1, 1], "
            f"as its authors do, and have {size}×{size} pixels"
        )
        return {"network": network} | processing_options(
            ImageProcessor(), network.get("in_channels", 3), size, 2**times, saved.place
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
