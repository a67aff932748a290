"""How many processes load the data of a run, where its recipe leaves it open."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from spectok.machine import usable_cores
from spectok.messages import say
from spectok.training.train_config import TrainConfig

MOST = 8
"""Workers per process that ``auto`` starts at most."""
PREFETCH = 2
"""Batches that each worker keeps ready."""
SHARED_MEMORY = "/dev/shm"


def choose_workers(config: TrainConfig, dataset: Any, device: torch.device) -> int:
    """Return how many processes load data beside each one that trains.

    ``auto`` is 0 on a CPU, which computes no faster while others load; 0 where reading costs next
    to nothing, because the data say ``in_memory``; 0 where processes are not forked, as a script
    would then have to expect it. Otherwise it is one less than the cores of this process, at most
    :data:`MOST`, and as many as the shared memory has room for. One line says what was chosen.

    Args:
        config: How the run is trained.
        dataset: What it reads.
        device: What it trains on.
    """
    if config.num_workers != "auto":
        return config.num_workers
    number, why = _choose(config.batch_size, dataset, device)
    where = f"{number} processes load data" if number else "data are read while training"
    say(f"train.num_workers=auto: {number}, {where} ({why})")
    return number


def _choose(batch_size: int, dataset: Any, device: torch.device) -> tuple[int, str]:
    if device.type == "cpu":
        return 0, "it trains on a CPU"
    if is_in_memory(dataset):
        return 0, "they are in memory"
    if _start_method() != "fork":
        return 0, "this system forks no processes"
    cores = usable_cores() / local_processes()
    free = int(min(MOST, max(0, cores - 1)))
    room = _room(batch_size, dataset)
    if room < free:
        return room, f"more have no room in {SHARED_MEMORY}"
    return free, f"{cores:g} cores for each process that trains"


def is_in_memory(dataset: Any) -> bool:
    """Return whether a data set, or the one that it wraps, says that reading costs nothing."""
    while not hasattr(dataset, "in_memory") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return bool(getattr(dataset, "in_memory", False))


def local_processes() -> int:
    """Return how many processes of the launch share this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def _start_method() -> str:
    """Return how worker processes would be started, without deciding it for the program."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]


def _room(batch_size: int, dataset: Any) -> int:
    """Return how many workers' batches fit in half of the shared memory that is free."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # batches are then passed on in another way
        return MOST
    leaves = tree_leaves(dataset[0])
    item = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
    taken = max(1, item * batch_size * (PREFETCH + 1) * local_processes())
    return min(MOST, free // 2 // taken)
