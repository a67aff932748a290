"""Registers the tokenizer ``vqvae`` and the quantizers ``vq`` and ``ema``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``vqvae``."""
    from spectok_vq.model import VQVAE

    return {"vqvae": VQVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``vq`` and ``ema``."""
    from spectok_vq.quantizer import EMAQuantizer, GradientQuantizer

    return {"vq": GradientQuantizer, "ema": EMAQuantizer}
