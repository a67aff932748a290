"""Registers the tokenizer ``hrvqvae`` and the quantizer ``tree``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``hrvqvae``."""
    return {"hrvqvae": "spectok_hrvqvae.model:HRVQVAE"}


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``tree``."""
    return {"tree": "spectok_hrvqvae.quantizer:TreeQuantizer"}
