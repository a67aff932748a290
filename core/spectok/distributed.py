"""Codebook state that is edited outside autograd, kept equal on all ranks.

EMA updates, anchors, resets and revivals write codes without DDP's knowledge. Every such edit uses
these functions: statistics are summed over ranks, replacement candidates are gathered or drawn
once, and all ranks call the same collectives in the same order, whatever their data. With one
process each function is the identity or a plain draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.device import send


def world() -> tuple[int, int]:
    """Return ``(rank, number of processes)``; ``(0, 1)`` without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@torch.no_grad()
def sum_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Sum tensors of one dtype over all ranks, packed into a single all-reduce."""
    if world()[1] == 1:
        return list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors)]


@torch.no_grad()
def broadcast_from_main(tensor: Tensor) -> Tensor:
    """Return rank 0's values on every rank."""
    if world()[1] == 1:
        return tensor
    tensor = tensor.contiguous()
    dist.broadcast(tensor, src=0)
    return tensor


@torch.no_grad()
def gather_candidates(
    vectors: Float[Tensor, "n d"], count: int, generator: torch.Generator
) -> Float[Tensor, "count d"]:
    """Draw replacement candidates from the vectors of all ranks, the same on every rank.

    They are drawn with replacement, since there may be fewer vectors than codes. Vectors are
    numbered rank by rank, so that two processes draw what one process with the whole batch would.
    Only ``count`` vectors are sent, not the batch.

    Args:
        vectors: This rank's vectors; every rank must hold at least one.
        count: Number of candidates to return.
        generator: CPU generator in the same state on every rank.
    """
    rank, size = world()
    draws = send(torch.rand(count, generator=generator), vectors.device)
    held = torch.zeros(size, dtype=torch.int64, device=vectors.device)
    held[rank] = len(vectors)
    ends = sum_over_ranks(held)[0].cumsum(0)
    rows = torch.minimum((draws * ends[-1]).long(), ends[-1] - 1) - (ends[rank] - len(vectors))
    is_mine = ((rows >= 0) & (rows < len(vectors))).unsqueeze(-1)
    mine = vectors[rows.clamp(0, len(vectors) - 1)]
    return sum_over_ranks(torch.where(is_mine, mine, 0))[0]


_shared: torch.Generator | None = None


@contextmanager
def shared_draws(seed: int) -> Iterator[None]:
    """Let :func:`draw_per_sample` draw from a generator that every rank seeds alike.

    The training loop opens this around each micro-batch. The default generators may then differ
    between ranks, as dropout requires.
    """
    global _shared
    previous, _shared = _shared, torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _shared = previous


def draw_per_sample(batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw one uniform number per image, independent of how the batch is split over ranks.

    Every rank draws for the whole global batch and keeps its own share, so runs with one process
    and with two mask the same images.

    Args:
        batch_size: Images on this rank, equal on all ranks.
        generator: CPU generator in the same state on every rank. None: that of
            :func:`shared_draws`, or the default one outside of it.

    Returns:
        CPU tensor of shape ``(batch_size,)`` in [0, 1).
    """
    rank, size = world()
    draws = draw_uniform(size * batch_size, generator)
    return draws[rank * batch_size : (rank + 1) * batch_size]


def draw_uniform(count: int, generator: torch.Generator | None) -> Tensor:
    """Draw numbers in [0, 1) for :func:`draw_per_sample`: the part that no graph can hold."""
    return torch.rand(count, generator=generator or _shared)


@torch.no_grad()
def clear_moments(
    parameter: Tensor,
    rows: Int[Tensor, "r"] | Bool[Tensor, "k"],
    optimizers: Iterable[torch.optim.Optimizer],
) -> None:
    """Zero the optimiser's running moments of replaced codes.

    Args:
        parameter: Codebooks; the last dimension is that of a code, all others index codes.
        rows: Indices into the flattened code dimensions, or a mask over them, whose True values
            need not be counted first.
        optimizers: Every optimiser that may hold state for the parameter.
    """
    for optimizer in optimizers:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # unwrap AcceleratedOptimizer
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                codes = value.view(-1, value.shape[-1])
                if rows.dtype == torch.bool:
                    codes.masked_fill_(rows.unsqueeze(-1), 0)
                else:
                    codes[rows] = 0
