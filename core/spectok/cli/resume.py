"""``spectok resume``: go on with a run of any kind, wherever its folder is now."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.completing import complete_folder
from spectok.errors import CheckpointError, ConfigError
from spectok.messages import say
from spectok.places import home, may_be_hub_id, missing
from spectok.plugins.registry import list_models
from spectok.recipes.files import CHECKPOINTS, MANIFEST, MODEL, RUN_RECIPE, find_recipe

if TYPE_CHECKING:
    from typer.core import TyperGroup

LAUNCHERS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and kinds of MPI tell a process how many there are."""


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command("resume")(resume)


def resume(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(autocompletion=complete_folder, help="Folder of a run, of any kind.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="What may change, such as train.steps=20000."
        ),
    ] = None,
) -> None:
    """Go on with a run from its last checkpoint, by its own recipe."""
    from spectok.recipes.recipe import apply_overrides
    from spectok.recipes.yaml12 import read_yaml

    folder, changes = find_run(run), overrides or []
    wrong = [word for word in changes if "=" not in word]
    if wrong:
        raise ConfigError(f"{wrong[0]} is no setting; give what is to change as key=value")
    recorded = read_yaml(folder / RUN_RECIPE)
    root: Any = context.find_root().command
    command = kind_of_run(recorded, folder, root.commands["train"])
    changed = apply_overrides(recorded, changes)
    all_known = check_changes(recorded, changed)
    check_still_there(run, changed)
    check_training(folder, changed)
    if all_known and (done := steps_of_finished(folder, changed)) is not None:
        say(how_to_lengthen(run, done, changed))
        return
    words = ["train", command, str(folder / RUN_RECIPE), *changes]
    words += ["--output", str(folder), "--resume", "auto"]
    raise typer.Exit(int(root(words, prog_name="spectok", standalone_mode=False) or 0))


def find_run(name: str) -> Path:
    """Return the folder of a run, given itself or what lies in it: its recipe or its model.

    Raises:
        ConfigError: If it is none.
    """
    given = Path(home(name))
    if not name:
        raise ConfigError("the name of a run is empty; for this directory, give '.'")
    if name in list_models():
        raise ConfigError(
            f"{name} is a trained model that is installed, not a run; 'spectok info {name}' shows "
            f"how it can be used"
        )
    if not os.path.lexists(given):
        raise ConfigError(f"{missing(name)}; give the folder of a run")
    inside = given.name in (RUN_RECIPE, MODEL, CHECKPOINTS)
    places = [given, given.absolute().parent] if inside else [given]
    for folder in places:
        is_model = os.path.isfile(folder / "config.json")  # a trained model's own folder
        if os.path.isfile(folder / RUN_RECIPE) and not is_model:
            return folder
    raise ConfigError(
        f"{name} is no run: a run's folder has a {RUN_RECIPE} beside its {CHECKPOINTS}"
    )


def kind_of_run(recorded: Any, folder: Path, train: TyperGroup) -> str:
    """Return the command of ``spectok train`` that trained a run: it is called like a section.

    Raises:
        ConfigError: If there is none.
    """
    sections = recorded if isinstance(recorded, Mapping) else {}
    for name in train.commands:
        if isinstance(sections.get(name), Mapping):
            return name
    raise ConfigError(
        f"{folder / RUN_RECIPE} is not the recipe of a run: it has no section that is called like "
        f"one of {', '.join(train.commands)}"
    )


def check_changes(recorded: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    """Refuse what would make it a different run, before anything is imported or read.

    Settings that the recorded recipe lacks are left to the training, which checks all.

    Returns:
        Whether there are no such settings.

    Raises:
        ConfigError: Names each setting.
    """
    from spectok.training.same_run import check_same_run, flatten

    old, new = flatten(recorded), flatten(changed)
    both = old.keys() & new.keys()
    check_same_run({key: old[key] for key in both}, {key: new[key] for key in both})
    return new.keys() <= old.keys()


def check_still_there(run: str, recipe: Mapping[str, Any]) -> None:
    """Check that what a run builds on is still where its recipe says.

    Raises:
        ConfigError: Names the setting that says where it is now.
    """
    from spectok.training.same_run import PLACES, flatten

    settings = flatten(recipe)
    for key in PLACES:
        place = settings.get(key)
        if not isinstance(place, str) or "/" not in place:
            continue
        if place in list_models() or find_recipe(place) is not None:
            continue
        if not os.path.lexists(home(place)) and not may_be_hub_id(place):
            raise ConfigError(
                f"{key}: {missing(place)}; where it was moved: "
                f"{shlex.join(['spectok', 'resume', run])} {key}=PLACE"
            )


def check_training(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse fewer steps than were taken, or other samples per step, where the files tell.

    What they do not tell, such as those of a damaged checkpoint, is left to the training.

    Raises:
        ConfigError: Says which.
    """
    from spectok.reading import read_json
    from spectok.training.same_run import check_samples_per_step, check_steps_taken

    train: Any = recipe.get("train")
    newest = newest_checkpoint(folder)
    if newest is None or not isinstance(train, Mapping):
        return
    if isinstance(steps := train.get("steps"), int):
        check_steps_taken(step_of(newest), steps)
    try:
        recorded = read_json(newest / MANIFEST, CheckpointError)
        samples = train["batch_size"] * train["gradient_accumulation"] * num_processes()
        check_samples_per_step(recorded, samples)
    except (CheckpointError, KeyError, TypeError):
        return


def num_processes() -> int:
    """Return the number of processes of this launch, as its launcher tells them; 1 without one."""
    told = (os.environ.get(name, "") for name in LAUNCHERS)
    return next((int(number) for number in told if number.isdecimal()), 1)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, whole or damaged; None if there is none."""
    found = [p for p in (folder / CHECKPOINTS).glob("step-*") if p.name[5:].isdecimal()]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name[5:])


def steps_of_finished(folder: Path, recipe: Mapping[str, Any]) -> int | None:
    """Return how many steps a run took if it took all that its recipe says; None if not."""
    train: Any = recipe.get("train")
    steps = train.get("steps") if isinstance(train, Mapping) else None
    newest = newest_checkpoint(folder)
    taken = 0 if newest is None else step_of(newest)
    finished = os.path.isdir(folder / MODEL) and taken > 0 and taken == steps
    return taken if finished else None


def how_to_lengthen(run: str, done: int, recipe: Mapping[str, Any]) -> str:
    """Return what to say of a finished run."""
    words = ["spectok", "resume", run, f"train.steps={2 * done}"]
    if recipe["train"].get("lr_schedule", "constant") != "constant":
        words.append("train.reschedule=true")  # its learning rate has come down to zero
    return (
        f"{run} is finished, at {done:,} of {done:,} steps; to train it further: "
        f"{shlex.join(words)}"
    )
