"""Tokenizers of transformers that have no decoder there: Chameleon's and Apertus 1.5's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from transformers.models.apertus1p5.configuration_apertus1p5 import Apertus1p5VisionTokenizerConfig
from transformers.models.apertus1p5.modeling_apertus1p5 import Apertus1p5VisionTokenizerModel
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from spectok import ForeignFolder
from spectok_pretrained.boxes import (
    EmbeddingQuantizer,
    LibraryEncoder,
    LibraryQuantizer,
    NoDecoder,
    PixelScale,
    grid_of,
)
from spectok_pretrained.inside import (
    InsideTokenizer,
    build_network,
    levels_factor,
    network_options,
)
from spectok_pretrained.processing import Filter, ImageProcessor


class PretrainedChameleon(InsideTokenizer):
    """ChameleonVQVAE of transformers, frozen; it encodes, and has no decoder.

    Args:
        network: The options of ``ChameleonVQVAEConfig``.
        image_size: Height and width, in pixels; divisible by 2^(levels - 1).
        image_mean: What the network's images have subtracted, of pixels in [0, 1].
        image_std: What they are then divided by.
        resample: Pillow's filter with which its images are resized.

    Raises:
        ConfigError: If the options are not the library's.
        InputError: If sizes do not fit together.
    """

    whole: ClassVar[str] = "chameleon"
    skipped: ClassVar[tuple[str, ...]] = ("post_quant_conv.",)
    usual: ClassVar[ImageProcessor] = ImageProcessor(
        rescale_factor=0.0078, image_mean=1.0, image_std=1.0, resample=1
    )

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        image_size: Annotated[int, Field(ge=1)] = 512,
        image_mean: tuple[float, ...] = (0.5,),
        image_std: tuple[Annotated[float, Field(gt=0)], ...] = (0.5,),
        resample: Filter = "lanczos",
    ):
        super().__init__()
        model = build_network(ChameleonVQVAE, ChameleonVQVAEConfig, network)
        config, scale = model.config, PixelScale(image_mean, image_std)
        grid = grid_of(image_size, levels_factor(config.channel_multiplier))
        self.assemble(
            LibraryEncoder(model.encoder, model.quant_conv, scale),
            EmbeddingQuantizer(
                model.quantize,
                dim=config.embed_dim,
                grid=grid,
                codebook_size=config.num_embeddings,
            ),
            NoDecoder("ChameleonVQVAE of transformers"),
            (config.in_channels, image_size, image_size),
            resample,
        )

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`."""
        network = network_options(ChameleonVQVAEConfig, cls.library_config(saved))
        factor = levels_factor(network["channel_multiplier"])
        return {"network": network} | cls.processing(
            saved, network["in_channels"], factor, image_size, network["resolution"]
        )


class InnerProductQuantizer(LibraryQuantizer):
    """The code with the largest inner product, as in index backpropagation quantisation (IBQ)."""

    def search(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "..."]:
        """Return the indices."""
        return self.network(latents)

    def codes(self) -> Float[Tensor, "k d"]:
        """Return the rows of the linear layer that the products are taken with."""
        embedding: Any = self.network.embedding
        return embedding.weight


class PretrainedApertus(InsideTokenizer):
    """Apertus1p5VisionTokenizerModel of transformers, frozen: Emu3.5's encoder; no decoder.

    Args:
        network: The options of ``Apertus1p5VisionTokenizerConfig``.
        image_size: Height and width, in pixels; divisible by 2^(levels - 1).
        image_mean: What the network's images have subtracted, of pixels in [0, 1].
        image_std: What they are then divided by.
        resample: Pillow's filter with which its images are resized.

    Raises:
        ConfigError: If the options are not the library's.
        InputError: If sizes do not fit together.
    """

    whole: ClassVar[str] = "apertus1p5"
    part: ClassVar[str] = "vision_tokenizer"
    section: ClassVar[str] = "vision_config"

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        image_size: Annotated[int, Field(ge=1)] = 256,
        image_mean: tuple[float, ...] = (0.5,),
        image_std: tuple[Annotated[float, Field(gt=0)], ...] = (0.5,),
        resample: Filter = "bicubic",
    ):
        super().__init__()
        model = build_network(
            Apertus1p5VisionTokenizerModel, Apertus1p5VisionTokenizerConfig, network
        )
        config, scale = model.config, PixelScale(image_mean, image_std)
        grid = grid_of(image_size, levels_factor(config.channel_multiplier))
        self.assemble(
            LibraryEncoder(model.encoder, model.quant_conv, scale),
            InnerProductQuantizer(
                model.quantize,
                dim=config.embed_dim,
                grid=grid,
                codebook_size=config.codebook_size,
            ),
            NoDecoder("Apertus1p5VisionTokenizerModel of transformers"),
            (config.in_channels, image_size, image_size),
            resample,
        )

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`.

        The library's processor allows any area between two bounds; the size is ``resolution``, for
        which the network was laid out.
        """
        network = network_options(Apertus1p5VisionTokenizerConfig, cls.library_config(saved))
        factor, size = levels_factor(network["channel_multiplier"]), network["resolution"]
        return {"network": network} | cls.processing(
            saved, network["in_channels"], factor, size if image_size is None else image_size, size
        )
