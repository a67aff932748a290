"""JanusVQVAE of transformers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from spectok import ConfigError, ForeignFolder
from spectok_pretrained.boxes import (
    EmbeddingQuantizer,
    LibraryDecoder,
    LibraryEncoder,
    PixelScale,
    grid_of,
)
from spectok_pretrained.inside import (
    InsideTokenizer,
    build_network,
    levels_factor,
    network_options,
)
from spectok_pretrained.processing import Filter


class JanusQuantizer(EmbeddingQuantizer):
    """Searches the embedding as it is, and decodes its rows brought to length 1."""

    def codes(self) -> Float[Tensor, "k d"]:
        """Return the normalised rows, which the library decodes."""
        return F.normalize(super().codes(), p=2, dim=-1)


class PretrainedJanus(InsideTokenizer):
    """JanusVQVAE of transformers, frozen: the tokenizer of Janus and Janus-Pro.

    Args:
        network: The options of ``JanusVQVAEConfig``.
        image_size: Height and width, in pixels: ``num_patches`` times the factor 2^(levels - 1).
        image_mean: What the network's images have subtracted, of pixels in [0, 1].
        image_std: What they are then divided by.
        resample: Pillow's filter with which its images are resized.

    Raises:
        ConfigError: If the options are not the library's.
        InputError: If sizes do not fit together.
    """

    whole: ClassVar[str] = "janus"

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        image_size: Annotated[int, Field(ge=1)] = 384,
        image_mean: tuple[float, ...] = (0.5,),
        image_std: tuple[Annotated[float, Field(gt=0)], ...] = (0.5,),
        resample: Filter = "bicubic",
    ):
        super().__init__()
        model = build_network(JanusVQVAE, JanusVQVAEConfig, network)
        config, scale = model.config, PixelScale(image_mean, image_std)
        grid = grid_of(image_size, levels_factor(config.channel_multiplier))
        self.assemble(
            LibraryEncoder(model.encoder, model.quant_conv, scale),
            JanusQuantizer(
                model.quantize,
                dim=config.embed_dim,
                grid=grid,
                codebook_size=config.num_embeddings,
            ),
            LibraryDecoder(model.post_quant_conv, model.decoder, scale),
            (config.in_channels, image_size, image_size),
            resample,
        )

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`."""
        network = network_options(JanusVQVAEConfig, cls.library_config(saved))
        if saved.config.get("model_type") == cls.whole:  # there the number follows from the images
            vision = network_options(JanusVisionConfig, saved.config.get("vision_config") or {})
            network["num_patches"] = vision["image_size"] // vision["patch_size"]
        factor = levels_factor(network["channel_multiplier"])
        size = network["num_patches"] * factor
        if image_size not in (None, size):
            raise ConfigError(
                f"image_size {image_size} is not {size}, the one size that Janus decodes; leave it "
                f"out"
            )
        return {"network": network} | cls.processing(
            saved, network["in_channels"], factor, size, size
        )
