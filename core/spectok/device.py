"""What keeps a GPU busy and exact: copies that nobody waits for, products without TF32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

EXACT = "highest"


def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return a tensor of given numbers, which must not be changed in place.

    The same numbers are copied to a device once: ``torch.tensor(values, device=device)`` copies
    them at each call, and lets the host wait until the device has done all that was queued.

    Args:
        values: Python numbers of one type.
        device: Where the tensor is.

    Returns:
        Shape ``(len(values),)``; int64, bool, or the default type of floats.
    """
    if torch.compiler.is_compiling():  # a graph holds its constants itself
        return torch.tensor(values, device=device)
    return kept_constant(values, device)


@functools.lru_cache(maxsize=4096)
def kept_constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return the tensor that :func:`constant` keeps; ``cache_clear()`` forgets them all."""
    with torch.inference_mode(False):  # what is kept may be needed for a gradient later
        return torch.tensor(values, device=device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for what a GPU has queued.

    Args:
        tensor: On the CPU, of a few megabytes at most: CUDA first takes a copy of it.
        device: Where it is to be.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32, even where training allows TF32.

    TF32 keeps 10 bits of each factor, and would choose other codes than float32 does.
    """
    allowed = EXACT if torch.compiler.is_compiling() else torch.get_float32_matmul_precision()
    if allowed == EXACT:
        yield
        return
    torch.set_float32_matmul_precision(EXACT)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
