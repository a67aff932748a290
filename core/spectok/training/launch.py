"""Starting Accelerate on the right device, and refusing launches that would silently go wrong."""

from __future__ import annotations

import atexit
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
)

from spectok.errors import CheckpointError, ConfigError, SpectokError, TrainingError
from spectok.training.train_config import TrainConfig

T = TypeVar("T")

DATA_PARALLEL = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
)


@contextmanager
def accelerated(config: TrainConfig, output: Path) -> Iterator[Accelerator]:
    """Start Accelerate for one run, and leave it as it was found.

    On a machine without an accelerator the CPU is requested explicitly; otherwise each process
    that ``torchrun`` starts would be a run of its own.

    Raises:
        ConfigError: If the precision or the tracker does not work on this machine.
        TrainingError: If the processes that were launched are not one data-parallel group.
    """
    check_launch()
    check_machine(config)
    ours = not AcceleratorState._shared_state
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation),
            step_scheduler_with_optimizer=False,
            log_with=config.tracker,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output)),
        )
    except ValueError as error:  # an environment that only half describes a group of processes
        raise TrainingError(f"training cannot start here: {error}") from error
    try:
        check_group(accelerator)
        with warnings.catch_warnings():
            # torch warns of any convolution with one input channel (grey images); it is harmless.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.free_memory()
        if ours:  # the next run in this process may want another precision
            AcceleratorState._reset_state()
            GradientState._reset_state()


def check_launch() -> None:
    """Refuse ``accelerate launch --cpu --num_processes N``, which starts one process.

    Its only trace is the address it would have used: a port without a rank. The precision, which
    nothing else sets, shows that the launcher ran.

    Raises:
        TrainingError: Names the launcher that works.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and on_cpu and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise TrainingError(
            "accelerate launch --cpu with several processes starts only one; launch with "
            "torchrun --standalone --nproc_per_node N instead"
        )


def check_machine(config: TrainConfig) -> None:
    """Check that this machine has what the precision and the tracker need.

    Raises:
        ConfigError: Names what is missing and the remedy.
    """
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError(
            "train.mixed_precision: fp16 needs a GPU and this machine has none; use bf16 or no"
        )
    if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
        raise ConfigError(
            f"train.tracker: {config.tracker} is not installed; pip install "
            f"'spectok[{config.tracker}]', or leave the tracker out (log.jsonl is always written)"
        )


def check_group(accelerator: Accelerator) -> None:
    """Check that the launched processes found each other.

    Raises:
        TrainingError: If they train apart, or not data-parallel.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"{launched} processes were launched but this one trains alone: each would be a "
            f"separate run writing to the same folder; set ACCELERATE_USE_CPU=true to train on "
            f"CPUs, or launch fewer processes than there are GPUs"
        )
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise TrainingError(
            f"{accelerator.distributed_type.value} is not supported: training is data-parallel; "
            f"choose multi-GPU in accelerate config, or launch with torchrun"
        )
    if accelerator.num_processes > 1:
        atexit.unregister(close_group)
        atexit.register(close_group)


def close_group() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Run an action on the main process while the others wait; fail on all if it fails.

    Returns:
        What the action returned, on the main process; None on the others.

    Raises:
        CheckpointError: If the action cannot write its files.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except OSError as problem:
            error = CheckpointError(f"cannot write to the folder of the run: {problem}")
        except Exception as problem:
            error = problem
    if accelerator.num_processes > 1:
        told: list[str | None] = [str(error) if error else None]
        broadcast_object_list(told, from_process=0)
        if told[0] is not None and error is None:
            raise SpectokError(told[0])
    if error is not None:
        raise error
    return result
