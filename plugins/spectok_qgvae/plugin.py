"""Registers tokenizer ``qgvae``, quantizer ``voronoi`` and discriminator ``pixel_unet``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``qgvae``."""
    from spectok_qgvae.model import QGVAE

    return {"qgvae": QGVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``voronoi``."""
    from spectok_qgvae.quantizer import VoronoiQuantizer

    return {"voronoi": VoronoiQuantizer}


@hookimpl
def spectok_discriminators() -> dict[str, Any]:
    """Register ``pixel_unet``."""
    from spectok_qgvae.discriminator import PixelUNet

    return {"pixel_unet": PixelUNet}
