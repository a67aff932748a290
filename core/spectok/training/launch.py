"""Starting Accelerate on the right device, and refusing launches that would silently go wrong."""

from __future__ import annotations

import atexit
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
)

from spectok.errors import ConfigError, TrainingError
from spectok.processes import watched
from spectok.training.compiling import check_compiler
from spectok.training.precision import check_agreed
from spectok.training.sharding import make_plugin, switch_on
from spectok.training.train_config import TrainConfig

DATA_PARALLEL = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.FSDP,
)


@contextmanager
def joined(config: TrainConfig) -> Iterator[None]:
    """Join the process group that this process was launched in, if it was.

    A context inside another is part of it: the first one's timeout counts.

    On a machine without an accelerator the CPU is requested explicitly; otherwise each process
    that ``torchrun`` starts would be a run of its own.

    Raises:
        TrainingError: If the processes that were launched are not one data-parallel group, or one
            of them ends.
    """
    check_launch()
    patience = timedelta(minutes=config.timeout_minutes)
    try:
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=patience)
    except ValueError as error:  # an environment that only half describes a group of processes
        raise TrainingError(f"training cannot start here: {error}") from error
    except torch.distributed.DistError as error:
        raise TrainingError(
            f"the processes that were launched did not find each other within "
            f"{config.timeout_minutes:g} minutes (train.timeout_minutes)"
        ) from error
    check_group(state)
    with watched(patience.total_seconds()):
        yield


@contextmanager
def accelerated(config: TrainConfig, output: Path) -> Iterator[Accelerator]:
    """Start Accelerate for one run, and leave it as it was found.

    Raises:
        ConfigError: If the precision, the tracker or the compiler does not work on this machine.
        TrainingError: See :func:`joined`.
    """
    check_machine(config)
    plugin = make_plugin(config)
    ours = not AcceleratorState._shared_state
    with joined(config), arithmetic(config):
        check_agreed(config)
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation),
            step_scheduler_with_optimizer=False,
            fsdp_plugin=plugin,
            log_with=config.tracker,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output)),
        )
        switch_on(accelerator, plugin)
        try:
            with warnings.catch_warnings():
                # torch warns of any convolution with one input channel (grey images); harmless.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield accelerator
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
            accelerator.free_memory()
            if ours:  # the next run in this process may want another precision
                AcceleratorState._reset_state()
                GradientState._reset_state()


@contextmanager
def arithmetic(config: TrainConfig) -> Iterator[None]:
    """Let CUDA round as a run wants it to, until the context ends; a CPU's rounding stays.

    Raises:
        TrainingError: If the run is to be deterministic, and an operation of it cannot be.
    """
    products = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled()
    try:
        if str(PartialState().device).startswith("cuda") and config.tf32:
            torch.set_float32_matmul_precision("high")
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at its first product
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        if not config.deterministic or "deterministic" not in str(error):
            raise
        raise TrainingError(
            f"train.deterministic: {str(error).splitlines()[0].partition(', but')[0]}; leave it off"
        ) from error
    finally:
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(algorithms)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


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


def check_settings(config: TrainConfig) -> None:
    """Refuse settings that do not go together on any machine.

    Raises:
        ConfigError: Names them.
    """
    if config.compile and config.gradient_checkpointing:
        raise ConfigError(
            "train.compile: is not supported with train.gradient_checkpointing; leave one off"
        )


def check_machine(config: TrainConfig) -> None:
    """Check that this machine has what precision, tracker and compiling need.

    Raises:
        ConfigError: Names what is missing and the remedy; or see :func:`check_settings`.
    """
    check_settings(config)
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError(
            "train.mixed_precision: fp16 needs a GPU and this machine has none; use bf16 or no"
        )
    if config.compile:
        check_compiler()
    if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
        raise ConfigError(
            f"train.tracker: {config.tracker} is not installed; pip install "
            f"'spectok[{config.tracker}]', or leave the tracker out (log.jsonl is always written)"
        )


def check_group(state: PartialState | Accelerator) -> None:
    """Check that the launched processes found each other.

    Raises:
        TrainingError: If they train apart, or neither data-parallel nor sharded.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != launched:
        raise TrainingError(
            f"{launched} processes were launched but this one trains alone: each would be a "
            f"separate run writing to the same folder; set ACCELERATE_USE_CPU=true to train on "
            f"CPUs, or launch fewer processes than there are GPUs"
        )
    if state.distributed_type not in DATA_PARALLEL:
        raise TrainingError(
            f"{state.distributed_type.value} is not supported: training is data-parallel "
            f"or sharded (FSDP); choose multi-GPU in accelerate config, or launch with torchrun"
        )
    if state.num_processes > 1:
        atexit.unregister(close_group)
        atexit.register(close_group)


def close_group() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
