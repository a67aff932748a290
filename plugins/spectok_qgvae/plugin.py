"""Registers tokenizer ``qgvae``, quantizer ``voronoi`` and discriminator ``pixel_unet``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``qgvae``."""
    return {"qgvae": "spectok_qgvae.model:QGVAE"}


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``voronoi``."""
    return {"voronoi": "spectok_qgvae.quantizer:VoronoiQuantizer"}


@hookimpl
def spectok_discriminators() -> dict[str, str]:
    """Register ``pixel_unet``."""
    return {"pixel_unet": "spectok_qgvae.discriminator:PixelUNet"}
