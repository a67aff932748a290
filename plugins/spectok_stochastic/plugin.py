"""Registers the tokenizer ``sqvae`` and the quantizers ``sq`` and ``gumbel``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``sqvae``."""
    from spectok_stochastic.model import SQVAE

    return {"sqvae": SQVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``sq`` and ``gumbel``."""
    from spectok_stochastic.quantizer import GumbelQuantizer, StochasticQuantizer

    return {"sq": StochasticQuantizer, "gumbel": GumbelQuantizer}
