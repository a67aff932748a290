"""Registers the tokenizers ``rqvae`` and ``hqvae``, the quantizers ``rq``, ``hq``, ``product``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``rqvae`` and ``hqvae``."""
    return {"rqvae": "spectok_residual.rqvae:RQVAE", "hqvae": "spectok_residual.hqvae:HQVAE"}


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``rq``, ``hq`` and ``product``."""
    return {
        "rq": "spectok_residual.residual:ResidualQuantizer",
        "hq": "spectok_residual.hierarchical:HierarchicalQuantizer",
        "product": "spectok_residual.product:ProductQuantizer",
    }
