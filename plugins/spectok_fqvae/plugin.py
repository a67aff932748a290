"""Registers the tokenizer ``fqvae`` and the quantizers ``cvq`` and ``cvq_pearson``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``fqvae``."""
    from spectok_fqvae.model import FQVAE

    return {"fqvae": FQVAE}


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``cvq`` and ``cvq_pearson``."""
    from spectok_fqvae.quantizer import ClusteringQuantizer, PearsonQuantizer

    return {"cvq": ClusteringQuantizer, "cvq_pearson": PearsonQuantizer}
