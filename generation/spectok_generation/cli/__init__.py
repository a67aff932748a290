"""The commands that the generation layer adds to ``spectok``; they sit on top of everything else.

As in :mod:`spectok.cli`, nothing here imports torch before a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok_generation.cli import clip, codec, demo, evaluate, info, plan, priors, sampling, ui

if TYPE_CHECKING:
    import typer


def add_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add every command of the generation layer.

    Args:
        app: The command ``spectok``.
        train: The group ``spectok train``.
    """
    priors.add_commands(app, train)
    sampling.add_commands(app)
    evaluate.add_commands(app)
    info.add_commands(app)
    clip.add_commands(train)
    demo.add_commands(app)
    codec.add_commands(app)
    plan.add_commands(app)
    ui.add_commands(app)
