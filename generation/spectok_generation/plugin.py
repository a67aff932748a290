"""Plugin hooks of the generation layer: its priors and its commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def spectok_priors() -> dict[str, str]:
    """Register the priors."""
    return {
        "cat": "spectok_generation.priors.cat:CAT",
        "gpt": "spectok_generation.priors.gpt:GPT",
        "ldm": "spectok_generation.diffusion.model:LDM",
        "maskgit": "spectok_generation.masked.model:MaskGIT",
        "pixelcnn": "spectok_generation.priors.pixelcnn:PixelCNN",
    }


@hookimpl
def spectok_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add the commands that train priors and sample from them, and ``spectok demo``."""
    from spectok_generation import cli

    cli.add_commands(app, train)
