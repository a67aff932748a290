"""Registers the tokenizers ``sqvae`` and ``hvqvae``, the quantizers ``sq``, ``gumbel``, ``hqa``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``sqvae`` and ``hvqvae``."""
    from spectok_stochastic.hierarchy import HVQVAE
    from spectok_stochastic.model import SQVAE

    return {"sqvae": SQVAE, "hvqvae": HVQVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``sq``, ``gumbel`` and ``hqa``."""
    from spectok_stochastic.probabilistic import ProbabilisticQuantizer
    from spectok_stochastic.quantizer import GumbelQuantizer, StochasticQuantizer

    return {"sq": StochasticQuantizer, "gumbel": GumbelQuantizer, "hqa": ProbabilisticQuantizer}
