"""Tokenizers of transformers, alone or inside a language model that draws."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from spectok import CheckpointError, ConfigError, ForeignFolder
from spectok.messages import note
from spectok_pretrained.boxes import LibraryTokenizer, build
from spectok_pretrained.processing import ImageProcessor, processing_options, read_processor


class InsideTokenizer(LibraryTokenizer):
    """Base of the tokenizers of transformers.

    Most are published as a part of a language model; of its files only those that hold the
    tokenizer are read, or fetched.

    Attributes:
        library_model: The library's class.
        library_options: The class of its config.
        whole: ``model_type`` of the language model.
        part: What the tokenizer is called in the language model.
        section: The section of the language model's config that is about it.
        usual: The processor for a model that comes without one.
    """

    library_model: ClassVar[Any]
    library_options: ClassVar[Any]
    whole: ClassVar[str]
    part: ClassVar[str] = "vqmodel"
    section: ClassVar[str] = "vq_config"
    usual: ClassVar[ImageProcessor] = ImageProcessor()

    @classmethod
    def make_network(cls, network: Mapping[str, Any]) -> Any:
        """Return the library's model, with random weights."""
        config = cls.library_options
        if unknown := sorted(set(network) - set(inspect.get_annotations(config))):
            raise ConfigError(
                f"network: {config.__name__} does not take {', '.join(unknown)[:200]}"
            )
        return build(cls.library_model, {"config": build(config, network)})

    @staticmethod
    def factor_of(config: Any) -> int:
        """Return how many pixels a latent pixel stands for, each way."""
        return levels_factor(config.channel_multiplier)

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`."""
        network = network_options(cls.library_options, cls.library_config(saved))
        return cls.processed(saved, network, image_size, network["resolution"])

    @classmethod
    def own_name(cls, name: str, saved: ForeignFolder) -> str | None:
        """Return the name here of a tensor of the tokenizer or the language model around it."""
        if saved.config.get("model_type") == cls.whole:
            inside = re.fullmatch(rf"(?:model\.)?{cls.part}\.(.+)", name)
            if inside is None:
                return None
            name = inside[1]
        return super().own_name(name, saved)

    @classmethod
    def library_config(cls, saved: ForeignFolder) -> Mapping[str, Any]:
        """Return the tokenizer's config, from its own or the language model's ``config.json``.

        Raises:
            CheckpointError: If the language model's does not have it.
        """
        if saved.config.get("model_type") != cls.whole:
            return saved.config
        inside = saved.config.get(cls.section)
        if not isinstance(inside, Mapping):
            raise CheckpointError(
                f"{saved.place}/config.json has no section {cls.section}, which describes the "
                f"tokenizer; copy it again"
            )
        return inside

    @classmethod
    def processed(
        cls, saved: ForeignFolder, network: dict[str, Any], size: int | None, usual_size: int
    ) -> dict[str, Any]:
        """Return all options: the network's, and what the checkpoint's image processor decides.

        Args:
            saved: The model's folder.
            network: Options of the library's config.
            size: Height and width asked for. None: the processor's.
            usual_size: Height and width if there is no processor, or it names no size.
        """
        processor = read_processor(saved)
        used = processor or cls.usual
        chosen = size if size is not None else (processor and processor.side) or usual_size
        factor = levels_factor(network["channel_multiplier"])
        options = processing_options(used, network["in_channels"], chosen, factor, saved.place)
        if processor is None:
            ends = [(edge - options["image_mean"][0]) / options["image_std"][0] for edge in (0, 1)]
            note(
                f"{saved.place}: no preprocessor_config.json; images are scaled to "
                f"[{ends[0]:.4g}, {ends[1]:.4g}] and have {chosen}×{chosen} pixels, the model's "
                f"own range and size"
            )
        return {"network": network} | options


def network_options(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all architecture options of a config class of transformers, in plain JSON types.

    Args:
        cls: The config class.
        given: A saved config; what else stands in it, such as versions, is left out.

    Raises:
        ConfigError: If a value is not one that it takes.
    """
    names = list(inspect.get_annotations(cls))
    config = build(cls, {name: given[name] for name in names if name in given})
    values = {name: getattr(config, name) for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def levels_factor(multipliers: Any) -> int:
    """Return how many pixels a latent pixel stands for, each way: halved between levels."""
    return 2 ** (len(multipliers) - 1)
