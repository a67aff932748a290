"""Registers the tokenizers ``rqvae`` and ``hqvae``, the quantizers ``rq``, ``hq``, ``product``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``rqvae`` and ``hqvae``."""
    from spectok_residual.hqvae import HQVAE
    from spectok_residual.rqvae import RQVAE

    return {"rqvae": RQVAE, "hqvae": HQVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``rq``, ``hq`` and ``product``."""
    from spectok_residual.hierarchical import HierarchicalQuantizer
    from spectok_residual.product import ProductQuantizer
    from spectok_residual.residual import ResidualQuantizer

    return {"rq": ResidualQuantizer, "hq": HierarchicalQuantizer, "product": ProductQuantizer}
