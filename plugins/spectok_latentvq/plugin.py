"""Registers the tokenizer ``latentvq``, and the autoencoders that it is built on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok import hookimpl

if TYPE_CHECKING:
    from spectok import ForeignModel


KINDS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")
"""Classes of diffusers whose latents ``latentvq`` gives codes."""


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``latentvq``."""
    return {"latentvq": "spectok_latentvq.model:LatentVQ"}


@hookimpl
def spectok_foreign_models() -> dict[str, ForeignModel]:
    """Say what becomes of an autoencoder without codes."""
    from spectok import ForeignModel

    return {
        "autoencoder": ForeignModel(
            "",
            "AutoencoderKL, AutoencoderDC and AutoencoderTiny of diffusers (as parts of latentvq)",
            class_names=KINDS,
            instead="an autoencoder without codes; spectok train latentvq --data DATA "
            "tokenizer.autoencoder=PLACE trains codes in its latents",
        )
    }
