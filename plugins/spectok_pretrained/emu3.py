"""Emu3VQVAE of transformers, a tokenizer of videos, on single images."""

from __future__ import annotations

from typing import Any, ClassVar

from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from spectok import ForeignFolder
from spectok_pretrained.boxes import EmbeddingQuantizer, LibraryQuantizer, PixelScale
from spectok_pretrained.inside import InsideTokenizer, network_options

USUAL_SIZE = 512
"""Side of the smallest square that transformers' image processor of Emu3 makes."""


class StillEncoder(nn.Module):
    """An image, repeated as often as the network compresses time, to one frame of latents.

    Args:
        model: The library's model.
        scale: Brings images to the numbers the network takes.
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.network, self.quant_conv, self.scale = model.encoder, model.quant_conv, scale
        self.frames = model.config.temporal_downsample_factor

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d lh lw"]:
        """Return the latents before quantisation."""
        clip = repeat(self.scale.to_network(images), "b c h w -> b t c h w", t=self.frames)
        hidden = self.network(clip.contiguous())  # (B, 1, c, h, w)
        latents = self.quant_conv(rearrange(hidden, "b t c h w -> b c t h w"))
        return latents[:, :, 0]


class StillDecoder(nn.Module):
    """One frame of quantised latents to the first image of the clip that it stands for.

    Args:
        model: The library's model.
        scale: Brings what the network makes to [-1, 1].
    """

    def __init__(self, model: Any, scale: PixelScale):
        super().__init__()
        self.post_quant_conv, self.network, self.scale = model.post_quant_conv, model.decoder, scale
        self.frames = model.config.temporal_downsample_factor

    def forward(self, latents: Float[Tensor, "b d lh lw"]) -> Float[Tensor, "b c h w"]:
        """Return the images."""
        codes = latents.contiguous().unsqueeze(2)  # (B, d, 1, h, w)
        hidden = self.post_quant_conv(codes)
        clip = self.network(
            rearrange(hidden, "b c t h w -> b t c h w"), rearrange(codes, "b d t h w -> b t d h w")
        )
        first = clip.reshape(len(latents), self.frames, -1, *clip.shape[-2:])[:, 0]
        return self.scale.to_images(first)


class Emu3Quantizer(EmbeddingQuantizer):
    """The library's quantizer of clips, on one frame."""

    def search(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "..."]:
        """Return the indices."""
        return self.network(latents.unsqueeze(1))


class PretrainedEmu3(InsideTokenizer):
    """Emu3VQVAE of transformers, frozen: a tokenizer of videos, here of still images."""

    library_model: ClassVar[Any] = Emu3VQVAE
    library_options: ClassVar[Any] = Emu3VQVAEConfig
    encoder_box: ClassVar[type[nn.Module]] = StillEncoder
    quantizer_box: ClassVar[type[LibraryQuantizer]] = Emu3Quantizer
    decoder_box: ClassVar[type[nn.Module]] = StillDecoder
    whole: ClassVar[str] = "emu3"

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`."""
        network = network_options(cls.library_options, cls.library_config(saved))
        return cls.processed(saved, network, image_size, USUAL_SIZE)
