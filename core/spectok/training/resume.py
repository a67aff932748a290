"""How a run begins: afresh, or from the newest checkpoint in its folder."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.messages import note
from spectok.processes import from_main
from spectok.recipes.files import CHECKPOINTS, MODEL, RUN_RECIPE
from spectok.recipes.options import upgrade_recipe
from spectok.recipes.yaml12 import dump_yaml
from spectok.training.checkpoint import (
    PARTIAL,
    Parts,
    all_checkpoints,
    choose_checkpoint,
    list_checkpoints,
    load_checkpoint,
    put_aside,
    read_manifest,
)
from spectok.training.contracts import Resume, Run
from spectok.training.optimizer import learning_rate_factor
from spectok.training.same_run import (
    PLACES,
    check_same_run,
    check_samples_per_step,
    check_steps_taken,
)
from spectok.training.train_config import TrainConfig
from spectok.writing import write_text

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
        "sources": dict(run.sources),
        "recipe": without_consent(run.recipe),
        "train": config.model_dump(mode="json", exclude={"reschedule"}),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def begin(
    run: Run, config: TrainConfig, manifest: dict[str, Any], parts: Parts
) -> tuple[int, float]:
    """Prepare the folder of a run, and load the newest checkpoint if it is resumed.

    Returns:
        The step to continue from, and the seconds of training so far.

    Raises:
        CheckpointError: If the folder holds a run and ``run.resume`` is off, or its newest
            checkpoint cannot be read.
        ConfigError: If the run to resume was a different one, or its learning rate would jump.
    """
    name = from_main(lambda: _prepare(run, config, manifest))
    if name is None:
        return 0, 0.0
    chosen = run.output / CHECKPOINTS / name
    recorded = read_manifest(chosen)
    load_checkpoint(chosen, parts)
    return recorded["step"], recorded["seconds"]


def _prepare(run: Run, config: TrainConfig, manifest: dict[str, Any]) -> str | None:
    """Choose the checkpoint to go on from, check that it may be, and tidy the folder."""
    check_resume(run.output, run.resume)
    chosen, damaged = choose_checkpoint(run.output / CHECKPOINTS)
    if chosen is not None:  # before anything is written: a refusal leaves no trace
        recorded = read_manifest(chosen)
        check_samples_per_step(recorded, manifest["samples_per_step"])
        _check_same_settings(recorded, manifest)  # it can name what makes the data differ
        _check_same_data(recorded, manifest)
        check_steps(recorded, config)
    for path, problem in damaged.items():
        note(f"{path} is passed over: {problem}")
    _tidy(run, damaged)
    return None if chosen is None else chosen.name


def check_recorded(output: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe that is not that of a run's newest checkpoint, before anything is prepared.

    Args:
        output: Folder of the run, which may have no checkpoint yet.
        recipe: How it wants to go on.

    Raises:
        ConfigError: One line per setting that differs.
    """
    if found := list_checkpoints(output / CHECKPOINTS):
        _check_same_settings(read_manifest(found[-1]), {"recipe": dict(recipe)})


def _check_same_settings(recorded: dict[str, Any], current: dict[str, Any]) -> None:
    places = PLACES if "sources" in recorded else PLACES[:1]  # the data have a fingerprint
    check_same_run(_settings(recorded), _settings(current), places)


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that define a run; a run without a recipe has those of its training."""
    recipe = upgrade_recipe(manifest["recipe"])
    return recipe if "train" in recipe else recipe | {"train": manifest.get("train", {})}


def check_steps(recorded: dict[str, Any], config: TrainConfig) -> None:
    """Check that another number of steps makes sense, and does not move the learning rate unasked.

    Args:
        recorded: Manifest of the checkpoint to go on from.
        config: How the run wants to go on.

    Raises:
        ConfigError: If the run has taken more steps already; or if its learning rate would jump,
            and ``config.reschedule`` is off.
    """
    step, train = recorded["step"], _settings(recorded).get("train") or {}
    check_steps_taken(step, config.steps)
    known = {key: value for key, value in train.items() if key in TrainConfig.model_fields}
    before = TrainConfig.model_validate(known)
    if step == config.steps or not train:
        return
    old, new = (learning_rate_factor(c, step) * c.learning_rate for c in (before, config))
    if math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-6 * config.learning_rate):
        return
    last = learning_rate_factor(before, step - 1) * before.learning_rate
    jump = f"from {last:.3g} to {new:.3g} at step {step + 1}"
    if not config.reschedule:
        raise ConfigError(
            f"train.steps: with {config.steps} steps instead of {before.steps} the learning rate "
            f"({config.lr_schedule} to zero at the last step) goes {jump}, where it would have "
            f"been {old:.3g}; give train.reschedule=true if that is meant, or the steps of before"
        )
    note(f"the learning rate goes {jump}")


def check_resume(output: Path, resume: Resume) -> None:
    """Check that the folder of a run and what was said about resuming go together.

    Raises:
        CheckpointError: If it holds a run and ``resume`` is off; if ``resume`` is True and there is
            no checkpoint; or if beginning would overwrite a trained model.
    """
    found = all_checkpoints(output / CHECKPOINTS)
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


def recorded_progress(output: Path) -> tuple[int, int] | None:
    """Return the steps that a run has taken, and of how many; None if there is no checkpoint."""
    chosen, _ = choose_checkpoint(output / CHECKPOINTS)
    if chosen is None:
        return None
    manifest = read_manifest(chosen)
    steps = (_settings(manifest).get("train") or {}).get("steps")
    return None if steps is None else (manifest["step"], steps)


def recorded_settings(output: Path) -> dict[str, Any]:
    """Return the ``train:`` settings in the newest checkpoint of a run; empty if there is none."""
    found = list_checkpoints(output / CHECKPOINTS)
    return dict(_settings(read_manifest(found[-1])).get("train") or {}) if found else {}


def checkpoint_folder(output: Path, step: int) -> Path:
    """Return where the checkpoint of a step goes."""
    return output / CHECKPOINTS / f"step-{step:08d}"


def without_consent(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as it is kept: consent to a jump of the learning rate is for one time."""
    kept, train = dict(recipe), recipe.get("train")
    if isinstance(train, Mapping):
        kept["train"] = {key: value for key, value in train.items() if key != "reschedule"}
    return kept


def _tidy(run: Run, damaged: Iterable[Path]) -> None:
    """Remove what a killed run left half-written, and write down the recipe."""
    folder = run.output / CHECKPOINTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in damaged:
            put_aside(path)
        if run.recipe:
            write_text(
                run.output / RUN_RECIPE, dump_yaml(without_consent(run.recipe)), CheckpointError
            )
    except OSError as error:
        raise CheckpointError(f"cannot write to {run.output}: {error.strerror}") from error


def _check_same_data(recorded: dict[str, Any], current: dict[str, Any]) -> None:
    if any(recorded[key] != current[key] for key in ("num_samples", "data")):
        raise ConfigError(
            f"the data differ from those of the run to resume: it had {recorded['num_samples']} "
            f"samples and this one has {current['num_samples']}, or they are prepared differently"
        )
    for name, fingerprint in (recorded.get("sources") or {}).items():
        if current["sources"].get(name) != fingerprint:
            raise ConfigError(
                f"{name}: the run to resume has the one of weights {fingerprint[:12]}, not of "
                f"{current['sources'].get(name, 'none')[:12]}; give that, wherever it is now"
            )
    if recorded["seed"] != current["seed"]:
        raise ConfigError(
            f"seed: the run to resume has {recorded['seed']}, not {current['seed']}; set it back"
        )
