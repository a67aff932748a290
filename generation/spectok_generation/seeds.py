"""Where the random numbers of an image come from: one seed and its number, or a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, cast

import torch

from spectok.errors import InputError, shown

Seed = int | Sequence[int]
"""One seed for all images, which their numbers tell apart; or one for each image."""

HIGHEST = 2**63 - 1


def check_seed(seed: Seed, num_images: int) -> None:
    """Check that there is one seed, or as many as images, and that they are whole numbers.

    Raises:
        InputError: If not.
    """
    given = _own_seeds(seed)
    if given is not None and len(given) != num_images:
        raise InputError(
            f"{len(given)} seeds for {num_images} images; give one for each image, or one for all"
        )


def streams(seed: Seed, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return what seeds each image of a batch.

    Args:
        seed: One for all images; or one for each image of the whole sample, which is then the
            image that number 0 is of that seed alone.
        numbers: The number of each image in the whole sample.

    Raises:
        InputError: If a seed or a number is negative.
    """
    given = _own_seeds(seed)
    if given is not None and any(number >= len(given) for number in numbers):
        raise InputError(f"{len(given)} seeds, and image number {max(numbers)}; give one for each")
    found = [(int(cast(int, seed)), n) if given is None else (given[n], 0) for n in numbers]
    for value, number in found:
        if value < 0 or number < 0:
            raise InputError(f"seed {value} and image number {number} must be at least 0")
    return found


def _own_seeds(seed: Seed) -> list[int] | None:
    """Return the seed of each image; None if there is one for all.

    Raises:
        InputError: If they are no whole numbers.
    """
    given: Any = seed if isinstance(seed, list | tuple) else [seed]
    if not all(isinstance(one, Integral) for one in given):
        raise InputError(f"seed {shown(seed)} is no whole number, and no list of them")
    return [int(one) for one in given] if given is seed else None


def seed_from(generator: torch.Generator | Sequence[torch.Generator], num_images: int) -> Seed:
    """Draw a seed from a generator, or one for each image from a list of them.

    A generator moves on, so that the next call draws other images.

    Args:
        generator: On any device. With a list, an image is the one that its generator alone gives.
        num_images: How many images are drawn.

    Raises:
        InputError: If it is something else, or a list of another length.
    """
    given = [generator] if isinstance(generator, torch.Generator) else generator
    if not isinstance(given, list | tuple) or not all(
        isinstance(one, torch.Generator) for one in given
    ):
        raise InputError(
            f"generator of type {type(generator).__name__} is no torch.Generator or list of them"
        )
    if given is generator and len(given) != num_images:  # before any of them moves on
        raise InputError(
            f"{len(given)} generators for {num_images} images; give one for each image, or one "
            f"for all"
        )
    seeds = [
        int(torch.randint(HIGHEST, (), generator=one, device=one.device, dtype=torch.int64))
        for one in given
    ]
    return seeds[0] if isinstance(generator, torch.Generator) else seeds
