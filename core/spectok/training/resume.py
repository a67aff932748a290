"""How a run begins: afresh, or from the newest checkpoint in its folder."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.recipes.files import CHECKPOINTS, RUN_RECIPE
from spectok.recipes.options import upgrade_recipe
from spectok.recipes.yaml12 import dump_yaml
from spectok.training.checkpoint import (
    PARTIAL,
    Parts,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    read_manifest,
)
from spectok.training.contracts import Resume, Run
from spectok.training.launch import on_main
from spectok.training.train_config import TrainConfig

MODEL = "model"
PACKAGES = ("spectok", "torch", "diffusers", "transformers", "accelerate", "numpy")


def make_manifest(
    accelerator: Accelerator, config: TrainConfig, run: Run, dataset: Any
) -> dict[str, Any]:
    """Return what identifies a run and its data, for its checkpoints.

    Raises:
        DataError: If the data set is empty.
    """
    if len(dataset) == 0:
        raise DataError("the data set is empty; training needs at least one sample")
    return {
        "samples_per_step": config.batch_size
        * config.gradient_accumulation
        * accelerator.num_processes,
        "num_processes": accelerator.num_processes,
        "num_samples": len(dataset),
        "data": str(getattr(dataset, "fingerprint", "")),
        "seed": run.seed,
        "recipe": dict(run.recipe),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def begin(
    accelerator: Accelerator, run: Run, manifest: dict[str, Any], parts: Parts
) -> tuple[int, float]:
    """Prepare the folder of a run, and load the newest checkpoint if it is resumed.

    Returns:
        The step to continue from, and the seconds of training so far.

    Raises:
        CheckpointError: If the folder holds a run and ``run.resume`` is off, or its newest
            checkpoint cannot be read.
        ConfigError: If the run to resume was a different one.
    """
    folder = run.output / CHECKPOINTS
    check_resume(run.output, run.resume)
    found = list_checkpoints(folder)
    recorded = read_manifest(found[-1]) if found else None
    if recorded is not None:  # before anything is written: a refusal leaves no trace
        _check_same_data(recorded, manifest)
        check_same_run(upgrade_recipe(recorded["recipe"]), manifest["recipe"])
    on_main(accelerator, lambda: _tidy(run, folder))
    if recorded is None:
        return 0, 0.0
    load_checkpoint(found[-1], parts)
    return recorded["step"], recorded["seconds"]


def check_resume(output: Path, resume: Resume) -> None:
    """Check that the folder of a run and what was said about resuming go together.

    Raises:
        CheckpointError: If it holds a run and ``resume`` is off; if ``resume`` is True and there is
            no checkpoint; or if beginning would overwrite a trained model.
    """
    found = list_checkpoints(output / CHECKPOINTS)
    if found and not resume:
        raise CheckpointError(
            f"{output} already holds a run, at {found[-1].name}; resume it (--resume), or give "
            f"another output folder"
        )
    if not found and resume is True:
        raise CheckpointError(
            f"{output} holds no checkpoint to resume from; leave --resume out to begin a run "
            f"there, or give --resume auto: go on, or begin where there is nothing yet"
        )
    if not found and resume and (output / MODEL).is_dir():
        raise CheckpointError(
            f"{output} holds a trained model but no checkpoint to go on from, and beginning again "
            f"would overwrite it; give another output folder"
        )


def recorded_recipe(output: Path) -> dict[str, Any]:
    """Return the recipe in the newest checkpoint of a run; empty if there is none."""
    found = list_checkpoints(output / CHECKPOINTS)
    return dict(read_manifest(found[-1])["recipe"]) if found else {}


def checkpoint_folder(output: Path, step: int) -> Path:
    """Return where the checkpoint of a step goes."""
    return output / CHECKPOINTS / f"step-{step:08d}"


def _tidy(run: Run, folder: Path) -> None:
    """Remove what a killed run left half-written, and write down the recipe."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        if run.recipe:
            text = dump_yaml(dict(run.recipe))
            (run.output / RUN_RECIPE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write to {run.output}: {error.strerror}") from error


def _check_same_data(recorded: dict[str, Any], current: dict[str, Any]) -> None:
    if recorded["samples_per_step"] != current["samples_per_step"]:
        raise ConfigError(
            f"the run to resume took {recorded['samples_per_step']} samples per step, this one "
            f"takes {current['samples_per_step']}; train.batch_size x train.gradient_accumulation "
            f"x processes must stay the same (it had {recorded['num_processes']} processes)"
        )
    if any(recorded[key] != current[key] for key in ("num_samples", "data")):
        raise ConfigError(
            f"the data differ from those of the run to resume: it had {recorded['num_samples']} "
            f"samples and this one has {current['num_samples']}, or they are prepared differently"
        )
    if recorded["seed"] != current["seed"]:
        raise ConfigError(
            f"seed: the run to resume has {recorded['seed']}, not {current['seed']}; set it back"
        )
