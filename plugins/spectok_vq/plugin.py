"""Registers ``vqvae`` and its successors, and the quantizers ``vq``, ``ema``, ``wasserstein``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``vqvae``, ``vqvae2``, ``cvqvae``, ``vqwae``, ``vqgan`` and ``dqvae``."""
    return {
        "vqvae": "spectok_vq.model:VQVAE",
        "vqvae2": "spectok_vq.vqvae2:VQVAE2",
        "cvqvae": "spectok_vq.cvqvae:CVQVAE",
        "vqgan": "spectok_vq.vqgan:VQGAN",
        "dqvae": "spectok_vq.dqvae:DQVAE",
        "vqwae": "spectok_vq.vqwae:VQWAE",
    }


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``vq``, ``ema`` and ``wasserstein``."""
    return {
        "vq": "spectok_vq.quantizer:GradientQuantizer",
        "ema": "spectok_vq.quantizer:EMAQuantizer",
        "wasserstein": "spectok_vq.wasserstein:WassersteinQuantizer",
    }


@hookimpl
def spectok_checkpoint_formats() -> dict[str, str]:
    """Register ``taming`` and ``llamagen``."""
    return {
        "taming": "spectok_vq.originals:from_taming",
        "llamagen": "spectok_vq.originals:from_llamagen",
    }
