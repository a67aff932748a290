"""JanusVQVAE of transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from spectok import ConfigError, ForeignFolder
from spectok_pretrained.boxes import EmbeddingQuantizer, LibraryQuantizer
from spectok_pretrained.inside import InsideTokenizer, levels_factor, network_options


class JanusQuantizer(EmbeddingQuantizer):
    """Searches the embedding as it is, and decodes its rows brought to length 1."""

    def codes(self) -> Float[Tensor, "k d"]:
        """Return the normalised rows, which the library decodes."""
        return F.normalize(super().codes(), p=2, dim=-1)


class PretrainedJanus(InsideTokenizer):
    """JanusVQVAE of transformers, frozen: the tokenizer of Janus and Janus-Pro."""

    fixed_size = "Janus decodes one size alone"
    library_model: ClassVar[Any] = JanusVQVAE
    library_options: ClassVar[Any] = JanusVQVAEConfig
    quantizer_box: ClassVar[type[LibraryQuantizer]] = JanusQuantizer
    whole: ClassVar[str] = "janus"

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`."""
        network = network_options(cls.library_options, cls.library_config(saved))
        if saved.config.get("model_type") == cls.whole:  # there the number follows from the images
            vision = network_options(JanusVisionConfig, saved.config.get("vision_config") or {})
            network["num_patches"] = vision["image_size"] // vision["patch_size"]
        size = network["num_patches"] * levels_factor(network["channel_multiplier"])
        if image_size not in (None, size):
            raise ConfigError(
                f"image_size {image_size} is not {size}, the one size that Janus decodes; leave it "
                f"out"
            )
        return cls.processed(saved, network, size, size)
