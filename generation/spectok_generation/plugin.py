"""What the generation layer registers: priors and commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectok import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def spectok_priors() -> dict[str, type[Any]]:
    """Register the priors."""
    from spectok_generation.priors.gpt import GPT

    return {"gpt": GPT}


@hookimpl
def spectok_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add ``spectok train prior``, ``spectok extract`` and ``spectok sample``."""
    from spectok_generation.cli import add_commands

    add_commands(app, train)
