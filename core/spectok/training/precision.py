"""The precision of a run: what ``auto`` stands for, and what is said of a slow choice."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from spectok.errors import TrainingError
from spectok.messages import note, say
from spectok.processes import from_main
from spectok.training.contracts import Resume, Run
from spectok.training.resume import recorded_settings
from spectok.training.train_config import TrainConfig

RecipeT = TypeVar("RecipeT", bound=Any)


def settled_recipe(recipe: RecipeT, output: Path, resume: Resume) -> RecipeT:
    """Return a recipe whose ``train:`` section says what its run does; see :func:`settled`."""
    return recipe.model_copy(update={"train": settled(recipe.train, output, resume)})


def settled_run(config: TrainConfig, run: Run) -> tuple[TrainConfig, Run]:
    """Return settings and run with a precision that is chosen; see :func:`settled`."""
    chosen, train = settled(config, run.output, run.resume), run.recipe.get("train")
    if chosen is not config and isinstance(train, Mapping):
        train = {**train, "mixed_precision": chosen.mixed_precision}
        run = replace(run, recipe={**run.recipe, "train": train})
    return chosen, run


def settled(config: TrainConfig, output: Path, resume: Resume) -> TrainConfig:
    """Return settings in which ``mixed_precision: auto`` has become what it stands for.

    A run that goes on keeps the precision that it began with, since another would change what it
    learns; a run that begins takes what this machine computes fast, and one line says what.

    Args:
        config: As the recipe gives it.
        output: Folder of the run.
        resume: Whether the run in the folder goes on.
    """
    if config.mixed_precision != "auto":
        return config
    kept = recorded_settings(output).get("mixed_precision") if resume else None
    chosen, why = (kept, "the run began with it") if kept else choose_precision(device_kind())
    say(f"train.mixed_precision=auto: {chosen} ({why})")
    return config.model_copy(update={"mixed_precision": chosen})


def choose_precision(kind: str) -> tuple[str, str]:
    """Return what a new run computes in on a kind of device, and why, in a few words."""
    if kind == "cuda":
        fast, what = torch.cuda.is_bf16_supported(including_emulation=False), "this GPU"
    elif kind == "cpu":
        fast, what = cpu_computes_bf16(), "this processor"
    else:
        return "no", f"bf16 is not chosen on {kind}"
    return ("bf16", f"{what} computes it") if fast else ("no", f"{what} does not compute bf16")


def device_kind() -> str:
    """Return the kind of device that training runs on, such as ``cpu`` or ``cuda``."""
    if PartialState._shared_state:
        return torch.device(str(PartialState().device)).type
    if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def check_agreed(config: TrainConfig) -> None:
    """Check that all processes of a launch compute alike; ``auto`` may differ between machines.

    Raises:
        TrainingError: Names what the main process chose, and this one.
    """
    first = from_main(lambda: config.mixed_precision)
    if first != config.mixed_precision:
        raise TrainingError(
            f"train.mixed_precision: the main process computes in {first!r} and this one in "
            f"{config.mixed_precision!r}; set one that all machines of the launch have"
        )


def remark_slow_bf16(config: TrainConfig, device: torch.device) -> None:
    """Say so if a training in bf16 is about to run on a device without instructions for it."""
    if config.mixed_precision != "bf16":
        return
    if device.type == "cpu" and not cpu_has_bf16():
        note(
            "train.mixed_precision: this processor has no bf16 instructions, so bf16 is many times "
            "slower here than float32 (12 to 25 times where it was measured); set "
            "train.mixed_precision=no"
        )
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    if on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        note(
            "train.mixed_precision: this GPU only emulates bf16, slower than float32; set "
            "train.mixed_precision=no, or fp16"
        )


def cpu_has_bf16() -> bool:
    """Return whether this CPU has instructions for bf16; True where torch cannot tell.

    The operator is private to torch and missing from builds without oneDNN.
    """
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is None or bool(probe())


def cpu_computes_bf16() -> bool:
    """Return whether this CPU is known to multiply in bf16; False where torch cannot tell.

    Of processors by Intel and AMD, oneDNN takes those for capable, too, that have AVX-512 alone and
    convert.
    """
    if getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None) is None or not cpu_has_bf16():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
