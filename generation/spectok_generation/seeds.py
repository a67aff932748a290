"""Where the random numbers of an image come from: one seed and its number, or a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spectok.errors import InputError

Seed = int | Sequence[int]
"""One seed for all images, which their numbers tell apart; or one for each image."""

HIGHEST = 2**63 - 1


def check_seed(seed: Seed, num_images: int) -> None:
    """Check that there is one seed, or as many as images.

    Raises:
        InputError: If not.
    """
    if not isinstance(seed, int) and len(seed) != num_images:
        raise InputError(
            f"{len(seed)} seeds for {num_images} images; give one for each image, or one for all"
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
    found = [(seed, n) if isinstance(seed, int) else (int(seed[n]), 0) for n in numbers]
    for value, number in found:
        if value < 0 or number < 0:
            raise InputError(f"seed {value} and image number {number} must be at least 0")
    return found


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
    seeds = [
        int(torch.randint(HIGHEST, (), generator=one, device=one.device, dtype=torch.int64))
        for one in given
    ]
    if isinstance(generator, torch.Generator):
        return seeds[0]
    if len(seeds) != num_images:
        raise InputError(
            f"{len(seeds)} generators for {num_images} images; give one for each image, or one "
            f"for all"
        )
    return seeds
