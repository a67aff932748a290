"""Train on two processes of this machine, joined by gloo on the CPU."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectok.testing.learners import Learner, state_of, train

PATIENCE = timedelta(seconds=60)


def train_on_two_ranks(
    learner: Learner, batches: Sequence[Tensor], start_method: str | None = None
) -> list[dict[str, Tensor]]:
    """Train copies of a learner on two processes, each on its half of every batch.

    Gradients are averaged as DDP does, but buffers are not broadcast as DDP does: statistics that
    a quantizer forgets to sum over ranks must show.

    Args:
        learner: Stays as it is.
        batches: One global batch of even size per step.
        start_method: By default ``"fork"`` where it is safe, which costs a fraction of a second;
            ``"spawn"`` elsewhere, which imports torch again and needs importable classes.

    Returns:
        The state of each rank after the last step.

    Raises:
        Exception: What a rank raised, with its trace; a hang ends after a minute.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # From Python 3.12 on forking warns when the process has threads; the children use one.
        warnings.simplefilter("ignore", DeprecationWarning)
        mp.start_processes(
            _run_rank,
            args=(learner, list(batches), folder),
            nprocs=2,
            start_method=start_method or _start_method(),
        )
        return [load_file(Path(folder, f"rank{rank}.safetensors")) for rank in range(2)]


def _start_method() -> str:
    # A forked child cannot use autograd once the parent has started threads for an accelerator.
    forks = sys.platform == "linux" and not torch.accelerator.is_available()
    return "fork" if forks else "spawn"


def _run_rank(rank: int, learner: Learner, batches: list[Tensor], folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=PATIENCE)
    try:
        train(learner, [[batch.chunk(2)[rank]] for batch in batches])
        save_file(state_of(learner), Path(folder, f"rank{rank}.safetensors"))
    finally:
        dist.destroy_process_group()
