"""Divide the drawing of images among processes."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch.distributed as dist
from torch import Tensor

from spectok.distributed import world
from spectok.errors import InputError


def is_count(value: Any) -> bool:
    """Return whether something is a whole number of at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_numbers(num_images: int, batch_size: int = 1) -> None:
    """Check that there is at least one image to draw, in batches of at least one.

    Raises:
        InputError: If either number is below one.
    """
    if num_images < 1 or batch_size < 1:
        raise InputError(f"num_images {num_images} and batch_size {batch_size} must be at least 1")


def share_out(
    draw: Callable[[list[int]], Tensor],
    result: Tensor,
    batch_size: int,
    device: Any,
    on_images: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw many images, each on exactly one process.

    Args:
        draw: Image numbers -> one row per image, which must not depend on the rest of the batch.
        result: Zeros on the CPU, one row per image; filled in place.
        batch_size: Images drawn at once on each process.
        device: Device on which the processes exchange rows.
        on_images: Called with the number of images all processes drew since the last call.

    Returns:
        All rows on the CPU, the same on every process.

    Raises:
        InputError: If there are no images to draw.
    """
    num_images = len(result)
    check_numbers(num_images, batch_size)
    rank, size = world()
    mine = list(range(rank, num_images, size))
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        result[numbers] = draw(numbers).to("cpu", result.dtype)
        if on_images is not None:
            on_images(min(len(numbers) * size, num_images - start * size))
    if size == 1:
        return result
    shared = result.to(device)  # a row is zero on every rank but the one that drew it
    dist.all_reduce(shared)
    return shared.cpu()
