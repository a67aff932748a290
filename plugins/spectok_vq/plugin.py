"""Registers ``vqvae`` and its successors, and the quantizers ``vq``, ``ema``, ``wasserstein``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``vqvae``, ``vqvae2``, ``cvqvae``, ``vqwae``, ``vqgan`` and ``dqvae``."""
    from spectok_vq.cvqvae import CVQVAE
    from spectok_vq.dqvae import DQVAE
    from spectok_vq.model import VQVAE
    from spectok_vq.vqgan import VQGAN
    from spectok_vq.vqvae2 import VQVAE2
    from spectok_vq.vqwae import VQWAE

    return {
        "vqvae": VQVAE,
        "vqvae2": VQVAE2,
        "cvqvae": CVQVAE,
        "vqgan": VQGAN,
        "dqvae": DQVAE,
        "vqwae": VQWAE,
    }


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``vq``, ``ema`` and ``wasserstein``."""
    from spectok_vq.quantizer import EMAQuantizer, GradientQuantizer
    from spectok_vq.wasserstein import WassersteinQuantizer

    return {"vq": GradientQuantizer, "ema": EMAQuantizer, "wasserstein": WassersteinQuantizer}


@hookimpl
def spectok_checkpoint_formats() -> dict[str, Any]:
    """Register ``taming`` and ``llamagen``."""
    from spectok_vq.originals import from_llamagen, from_taming

    return {"taming": from_taming, "llamagen": from_llamagen}
