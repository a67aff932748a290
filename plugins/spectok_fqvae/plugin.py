"""Registers ``fqvae``, the quantizers ``cvq`` and ``cvq_pearson``, and ``spectok codes``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``fqvae``."""
    return {"fqvae": "spectok_fqvae.model:FQVAE"}


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``cvq`` and ``cvq_pearson``."""
    return {
        "cvq": "spectok_fqvae.quantizer:ClusteringQuantizer",
        "cvq_pearson": "spectok_fqvae.quantizer:PearsonQuantizer",
    }


@hookimpl
def spectok_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add ``spectok codes``."""
    from spectok_fqvae.cli import add_commands

    add_commands(app)
