"""Registers the tokenizers ``sqvae`` and ``hvqvae``, the quantizers ``sq``, ``gumbel``, ``hqa``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``sqvae`` and ``hvqvae``."""
    return {
        "sqvae": "spectok_stochastic.model:SQVAE",
        "hvqvae": "spectok_stochastic.hierarchy:HVQVAE",
    }


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``sq``, ``gumbel`` and ``hqa``."""
    return {
        "sq": "spectok_stochastic.quantizer:StochasticQuantizer",
        "gumbel": "spectok_stochastic.quantizer:GumbelQuantizer",
        "hqa": "spectok_stochastic.probabilistic:ProbabilisticQuantizer",
    }
