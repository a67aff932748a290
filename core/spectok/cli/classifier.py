"""``spectok train classifier``: whose features compare sets of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import say_next
from spectok.cli.train import (
    Data,
    ResumableCommand,
    ResumeOption,
    check_output,
    name_of_data,
    named_recipe,
    resume_of,
)
from spectok.errors import ConfigError
from spectok.messages import say
from spectok.places import home


def add_commands(train: typer.Typer) -> None:
    """Add the command of this module."""
    train.command("classifier", cls=ResumableCommand)(train_classifier)


def train_classifier(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.yaml] [KEY=VALUE]...",
            help="A recipe (default: defaults), then settings such as train.steps=500.",
        ),
    ] = None,
    data: Data = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the run (default: runs/classifier-DATASET).")
    ] = None,
    resume: ResumeOption = None,
) -> None:
    """Train a small image classifier, whose features then compare sets of images."""
    from spectok.data.choice import check_choice, data_override
    from spectok.recipes.files import is_run_recipe, refuse_folder
    from spectok.recipes.recipe import apply_overrides, read_recipe, resolve_recipe

    words = words or []
    check_output(output, resume_of(resume))
    check_choice(data)
    own_data = [data_override(data)] if data else []
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise ConfigError(f"give one recipe, not {len(named)}: {' '.join(named)}")
    file = Path(home(named_recipe(named[0], resume))) if named else None
    if file is not None and file.suffix not in (".yaml", ".yml"):
        refuse_folder(named[0])
        raise ConfigError(
            f"{named[0]}: give a recipe of a classifier as a file, or images: --data DATA"
        )

    from spectok.evaluation import ClassifierRecipe, load_classifier
    from spectok.evaluation import train_classifier as run

    raw = {} if file is None else read_recipe(str(file), ClassifierRecipe)
    changes = [*own_data, *(word for word in words if "=" in word)]
    recipe = resolve_recipe(apply_overrides(raw, changes), ClassifierRecipe)
    default = Path("runs", f"classifier-{name_of_data(recipe.data)}")
    if file is not None and is_run_recipe(file):
        default = file.parent
    folder = Path(home(output or recipe.output or default))
    check_output(folder, resume_of(resume))
    result = run(recipe, folder, resume=resume_of(resume))
    accuracy = load_classifier(folder).config["held_out_accuracy"]
    say(
        f"trained {result.step:,} steps in {result.seconds:,.0f} s, recognises "
        f"{100 * accuracy:.2f} % of held-out images: {folder / 'model'}"
    )
    say_next(["spectok", "eval", "MODEL", "--classifier", str(folder)])
