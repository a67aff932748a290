"""Tokenizers of transformers that have no decoder there: Chameleon's and Apertus 1.5's."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.apertus1p5.configuration_apertus1p5 import Apertus1p5VisionTokenizerConfig
from transformers.models.apertus1p5.modeling_apertus1p5 import Apertus1p5VisionTokenizerModel
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from spectok import ForeignFolder
from spectok_pretrained.boxes import EmbeddingQuantizer, LibraryQuantizer, NoDecoder
from spectok_pretrained.inside import InsideTokenizer, network_options
from spectok_pretrained.processing import ImageProcessor


class PretrainedChameleon(InsideTokenizer):
    """ChameleonVQVAE of transformers, frozen; it encodes, and has no decoder."""

    library_model: ClassVar[Any] = ChameleonVQVAE
    library_options: ClassVar[Any] = ChameleonVQVAEConfig
    decoder_box: ClassVar[type[nn.Module]] = NoDecoder
    whole: ClassVar[str] = "chameleon"
    skipped: ClassVar[tuple[str, ...]] = ("post_quant_conv.",)
    usual: ClassVar[ImageProcessor] = ImageProcessor(
        rescale_factor=0.0078, image_mean=1.0, image_std=1.0, resample=1
    )


class InnerProductQuantizer(EmbeddingQuantizer):
    """The code with the largest inner product, as in index backpropagation quantisation (IBQ)."""

    def search(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "..."]:
        """Return the indices."""
        return self.network(latents)


class PretrainedApertus(InsideTokenizer):
    """Apertus1p5VisionTokenizerModel of transformers, frozen: Emu3.5's encoder; no decoder."""

    library_model: ClassVar[Any] = Apertus1p5VisionTokenizerModel
    library_options: ClassVar[Any] = Apertus1p5VisionTokenizerConfig
    quantizer_box: ClassVar[type[LibraryQuantizer]] = InnerProductQuantizer
    decoder_box: ClassVar[type[nn.Module]] = NoDecoder
    whole: ClassVar[str] = "apertus1p5"
    part: ClassVar[str] = "vision_tokenizer"
    section: ClassVar[str] = "vision_config"

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`.

        The library's processor allows any area between two bounds; the size is ``resolution``, for
        which the network was laid out.
        """
        network = network_options(cls.library_options, cls.library_config(saved))
        size = network["resolution"] if image_size is None else image_size
        return cls.processed(saved, network, size, size)
