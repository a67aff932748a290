"""Run code on two processes of this machine, connected by gloo on the CPU."""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectok.testing.learners import Learner, state_of, train

PATIENCE = timedelta(seconds=60)


def on_two_ranks(
    function: Callable[..., dict[str, Tensor]], *args: Any, start_method: str | None = None
) -> list[dict[str, Tensor]]:
    """Call ``function(rank, *args)`` on two processes of one process group.

    Args:
        function: Returns named tensors.
        *args: Further arguments; each process has its own copy.
        start_method: By default ``"fork"`` where that is safe (a fraction of a second), otherwise
            ``"spawn"``, which imports torch again and needs importable functions.

    Returns:
        What each rank returned.

    Raises:
        Exception: Whatever a rank raised, with its traceback; a rank that hangs fails in a minute.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # From Python 3.12 on forking warns when the process has threads; the children use one.
        warnings.simplefilter("ignore", DeprecationWarning)
        method = start_method or _start_method()
        mp.start_processes(_run_rank, (folder, function, args), nprocs=2, start_method=method)
        return [load_file(Path(folder, f"rank{rank}.safetensors")) for rank in range(2)]


def step_on_half(
    rank: int, learner: Learner, states: Sequence[dict[str, Tensor]], batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Take one step from each state on this rank's half of each batch.

    Gradients are averaged as in DDP, but buffers are not broadcast as in DDP, which would hide
    statistics that a quantizer forgets to sum over ranks.

    Returns:
        The state after step i under ``"i.name"``.
    """
    after = {}
    for i, (state, batch) in enumerate(zip(states, batches)):
        learner.load_state_dict(state)
        train(learner, [[batch.chunk(2)[rank]]], seed=i)
        after |= {f"{i}.{name}": value for name, value in state_of(learner).items()}
    return after


def _start_method() -> str:
    # A forked child cannot use autograd once the parent has started threads for an accelerator.
    forks = sys.platform == "linux" and not torch.accelerator.is_available()
    return "fork" if forks else "spawn"


def _run_rank(
    rank: int, folder: str, function: Callable[..., dict[str, Tensor]], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=PATIENCE)
    try:
        args = copy.deepcopy(args)  # spawned processes get their tensors in shared memory
        result = {name: value.contiguous() for name, value in function(rank, *args).items()}
        save_file(result, Path(folder, f"rank{rank}.safetensors"))
    finally:
        dist.destroy_process_group()
