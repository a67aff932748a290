"""Registers the tokenizer ``favae`` and the quantizer ``cosine``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``favae``."""
    from spectok_favae.model import FAVAE

    return {"favae": FAVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``cosine``."""
    from spectok_favae.quantizer import CosineQuantizer

    return {"cosine": CosineQuantizer}
