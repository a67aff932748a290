"""Plugin hooks of the generation layer: its priors and its commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectok import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def spectok_priors() -> dict[str, type[Any]]:
    """Register the priors."""
    from spectok_generation.diffusion.model import LDM
    from spectok_generation.priors.cat import CAT
    from spectok_generation.priors.gpt import GPT
    from spectok_generation.priors.pixelcnn import PixelCNN

    return {"cat": CAT, "gpt": GPT, "ldm": LDM, "pixelcnn": PixelCNN}


@hookimpl
def spectok_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add the commands that train priors and sample from them, and ``spectok demo``."""
    from spectok_generation import cli

    cli.add_commands(app, train)
