"""Registers the tokenizer ``favae`` and the quantizer ``cosine``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``favae``."""
    return {"favae": "spectok_favae.model:FAVAE"}


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``cosine``."""
    return {"cosine": "spectok_favae.quantizer:CosineQuantizer"}
