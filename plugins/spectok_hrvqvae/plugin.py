"""Registers the tokenizer ``hrvqvae`` and the quantizer ``tree``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``hrvqvae``."""
    from spectok_hrvqvae.model import HRVQVAE

    return {"hrvqvae": HRVQVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``tree``."""
    from spectok_hrvqvae.quantizer import TreeQuantizer

    return {"tree": TreeQuantizer}
