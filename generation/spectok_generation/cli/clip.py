"""``spectok train clip``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import say_next
from spectok.cli.train import (
    ResumableCommand,
    ResumeOption,
    check_output,
    named_recipe,
    resume_of,
)
from spectok.errors import ConfigError
from spectok.messages import say
from spectok.places import home


def add_commands(train: typer.Typer) -> None:
    """Add ``spectok train clip``."""
    train.command("clip", cls=ResumableCommand)(train_clip)


def train_clip(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|FILE.yaml] [key=value]...",
            help="A recipe or a file (default: the one made for the data, or defaults), then "
            "settings such as train.steps=2000 clip.text_layers=2.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Captioned images: directory, parquet, tar shards, hub id or data set."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the run. (default: runs/clip-DATA)")
    ] = None,
    resume: ResumeOption = None,
) -> None:
    """Train a small CLIP on captioned images, to read texts for a prior."""
    from spectok.data.choice import check_section
    from spectok_generation.text.clip_recipe import default_output, load_clip_recipe

    words = words or []
    named = [word for word in words if "=" not in word]
    if len(named) > 1 or not (named or data):
        raise ConfigError("give one recipe, or captioned images: spectok train clip --data shapes")
    check_output(output, resume_of(resume))
    name = named_recipe(named[0], resume) if named else None
    recipe = load_clip_recipe(name, [word for word in words if "=" in word], data)
    check_section(recipe.data.model_dump())
    folder = Path(home(output or recipe.output or default_output(name, recipe)))

    from spectok_generation.text.clip import train_clip as run

    result = run(recipe, folder, resume=resume_of(resume))
    say(f"trained {result.step:,} steps in {result.seconds:,.0f} s: {folder / 'model'}")
    say_next(
        ["spectok", "train", "prior", "cat", "--tokenizer", "TOKENIZER", "--text", str(folder)]
    )
