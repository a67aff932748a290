"""Registers ``vqvae`` and its successors, and the quantizers ``vq`` and ``ema``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``vqvae``, ``vqvae2``, ``cvqvae``, ``vqgan`` and ``dqvae``."""
    from spectok_vq.cvqvae import CVQVAE
    from spectok_vq.dqvae import DQVAE
    from spectok_vq.model import VQVAE
    from spectok_vq.vqgan import VQGAN
    from spectok_vq.vqvae2 import VQVAE2

    return {
        "vqvae": VQVAE,
        "vqvae2": VQVAE2,
        "cvqvae": CVQVAE,
        "vqgan": VQGAN,
        "dqvae": DQVAE,
    }


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``vq`` and ``ema``."""
    from spectok_vq.quantizer import EMAQuantizer, GradientQuantizer

    return {"vq": GradientQuantizer, "ema": EMAQuantizer}
