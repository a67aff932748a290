"""Registers the tokenizers ``rqvae`` and ``hqvae`` and the quantizers ``rq`` and ``hq``."""

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
    """Register ``rq`` and ``hq``."""
    from spectok_residual.hierarchical import HierarchicalQuantizer
    from spectok_residual.residual import ResidualQuantizer

    return {"rq": ResidualQuantizer, "hq": HierarchicalQuantizer}
