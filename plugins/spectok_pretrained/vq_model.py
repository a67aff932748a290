"""VQModel of diffusers: plain, as in aMUSEd, and as MoVQ."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import VQModel

from spectok import CheckpointError, ForeignFolder
from spectok.messages import note
from spectok_pretrained.boxes import LibraryTokenizer, build
from spectok_pretrained.processing import ImageProcessor, processing_options

UNIT_RANGE = re.compile("Amused.*Pipeline")
"""Pipelines that hand pixels in [0, 1] to the model; all others scale them to [-1, 1]."""
DENOISERS = ("transformer", "unet")
EARLIER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an attention's layers up to diffusers 0.17 -> their present names."""


class PretrainedVQModel(LibraryTokenizer):
    """VQModel of diffusers, frozen: the tokenizer of aMUSEd, VQ-Diffusion and Kandinsky (MoVQ).

    The library's forms differ in what they decode: ``lookup_from_codebook`` makes its ``decode``
    take indices, ``norm_type="spatial"`` also gives the decoder the codes. Here ``decode`` takes
    indices, whatever the form.
    """

    weights_stem: ClassVar[str] = "diffusion_pytorch_model"

    @classmethod
    def make_network(cls, network: Mapping[str, Any]) -> Any:
        """Return the library's model, with random weights."""
        return build(VQModel, network)

    @staticmethod
    def factor_of(config: Any) -> int:
        """Return how many pixels a latent pixel stands for, each way."""
        return 2 ** (len(config.get("block_out_channels", (64,))) - 1)

    @classmethod
    def own_name(cls, name: str, saved: ForeignFolder) -> str | None:
        """Return the name here of a tensor of any version of diffusers."""
        for before, now in EARLIER_ATTENTION.items():
            name = re.sub(rf"(\.attentions\.\d+\.){before}\.", rf"\1{now}.", name)
        return super().own_name(name, saved)

    @classmethod
    def options_of(cls, saved: ForeignFolder, image_size: int | None) -> dict[str, Any]:
        """Return the options of a saved model; see :class:`~spectok.ForeignTokenizer`.

        ``VQModel`` has no processor of its own. Its pipeline, where ``model_index.json`` names one,
        decides range and size as it does in diffusers: the size is the denoiser's ``sample_size``
        times the factor.
        """
        network = library_options(VQModel, saved)
        factor = cls.factor_of(network)
        pipeline = saved.pipeline.get("_class_name")
        lookup = network.get("lookup_from_codebook") is True
        unit = bool(UNIT_RANGE.fullmatch(pipeline)) if isinstance(pipeline, str) else lookup
        size = image_size
        if size is None:
            size = pipeline_size(saved, factor) or network.get("sample_size", 32)
        if not isinstance(pipeline, str):
            by = "aMUSEd does, whose models look codes up" if unit else "most pipelines do"
            note(
                f"{saved.place}: no model_index.json around it; images are scaled to "
                f"{'[0, 1]' if unit else '[-1, 1]'}, as {by}, and have {size}×{size} pixels"
            )
        channels = network.get("in_channels", 3)
        processor = ImageProcessor(do_normalize=not unit, resample=1)  # lanczos, in diffusers
        return {"network": network} | processing_options(
            processor, channels, size, factor, saved.place
        )


def pipeline_size(saved: ForeignFolder, factor: int) -> int | None:
    """Return the image size at which a pipeline draws; None if it does not say."""
    for part in DENOISERS:
        if isinstance(saved.pipeline.get(part), list):
            size = (saved.read(f"{part}/config.json") or {}).get("sample_size")
            if isinstance(size, int):
                return size * factor
    return None


def library_options(cls: type, saved: ForeignFolder) -> dict[str, Any]:
    """Return the options of a class of diffusers, from a config that somebody else wrote.

    Raises:
        CheckpointError: If it has options that the installed version does not take.
    """
    known = inspect.signature(cls).parameters
    network = {key: value for key, value in saved.config.items() if not key.startswith("_")}
    if unknown := sorted(key for key in network if key not in known):
        raise CheckpointError(
            f"{saved.place} has options that {cls.__name__} of the installed diffusers does not "
            f"take: {', '.join(unknown)[:200]}; update diffusers"
        )
    return network
