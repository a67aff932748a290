"""Training augmentation and turns of captions, functions of (seed, epoch, index) alone.

No ambient random state is read, so any number of workers, a resumed run and an uninterrupted run
see the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Augmentation:
    """Random mirroring and translation.

    Args:
        horizontal_flip: Mirror each image with probability 1/2.
        max_shift: Largest translation each way, in pixels; edge pixels fill the gap.
    """

    horizontal_flip: bool = False
    max_shift: int = 0

    def __bool__(self) -> bool:
        return self.horizontal_flip or self.max_shift > 0

    def __call__(
        self, image: UInt8[np.ndarray, "c h w"], generator: np.random.Generator
    ) -> UInt8[np.ndarray, "c h w"]:
        """Return the image, mirrored and shifted at random."""
        if self.horizontal_flip and generator.random() < 0.5:
            image = image[:, :, ::-1]
        if self.max_shift:
            down, right = generator.integers(-self.max_shift, self.max_shift + 1, size=2)
            image = shift(image, int(down), int(right))
        return np.ascontiguousarray(image)


def shift(image: UInt8[np.ndarray, "c h w"], down: int, right: int) -> UInt8[np.ndarray, "c h w"]:
    """Return the image moved by whole pixels; edge pixels fill the gap."""
    _, height, width = image.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return image[:, rows[:, None], columns]


def generator_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator for one image in one epoch."""
    return np.random.default_rng((seed, epoch, index))


def caption_turn(count: int, seed: int, epoch: int, index: int) -> int:
    """Return which of its captions an image carries in one epoch.

    As many epochs as the image has captions are a round, in which each caption has one turn; the
    order of the turns is drawn anew for every round.

    Args:
        count: How many captions the image has, at least 1.
        seed: Seed of the order.
        epoch: Number of the epoch.
        index: Number of the image.
    """
    if count == 1:
        return 0
    number, turn = divmod(epoch, count)
    # four numbers where generator_for takes three: never the stream of the augmentation
    return int(np.random.default_rng((seed, number, index, count)).permutation(count)[turn])
