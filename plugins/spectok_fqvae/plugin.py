"""Registers ``fqvae``, the quantizers ``cvq`` and ``cvq_pearson``, and ``spectok codes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectok import hookimpl

if TYPE_CHECKING:
    import typer


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


@hookimpl
def spectok_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add ``spectok codes``."""
    from spectok_fqvae.cli import add_commands

    add_commands(app)
