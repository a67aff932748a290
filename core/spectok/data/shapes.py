"""``shapes``: generated pictures of "a large red circle", with captions and unseen combinations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from spectok.data.digits import check_builtin
from spectok.data.sources import DatasetCard, DatasetSource

if TYPE_CHECKING:
    from spectok.data.data_config import DataConfig
    from spectok.data.rows import Rows

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 190),
    "orange": (240, 130, 30),
    "cyan": (50, 200, 215),
    "white": (245, 245, 245),
}
SIZES = {"small": (0.18, 0.22), "large": (0.34, 0.39)}
"""Range of the radius as a fraction of the image side: 6 to 7 and 11 to 12.5 pixels at 32×32."""

_COUNTS = {"train": 8192, "test": 800, "unseen": 320}
_SEEDS = {"train": 21, "test": 22, "unseen": 23}
_CHUNK = 512
_Grid = Float[np.ndarray, "n h w"]


def _circle(x: _Grid, y: _Grid) -> _Grid:
    return np.hypot(x, y) - 0.9


def _square(x: _Grid, y: _Grid) -> _Grid:
    return np.maximum(abs(x), abs(y)) - 0.88


def _triangle(x: _Grid, y: _Grid) -> _Grid:
    return np.maximum((1.8 * abs(x) - 0.92 * (y + 1)) / 2.02, y - 0.8)


def _diamond(x: _Grid, y: _Grid) -> _Grid:
    return (1.5 * abs(x) + abs(y) - 1) / 1.8


def _cross(x: _Grid, y: _Grid) -> _Grid:
    upright = np.maximum(abs(x) - 0.33, abs(y) - 1.0)
    level = np.maximum(abs(x) - 1.0, abs(y) - 0.33)
    return np.minimum(upright, level)


def _ring(x: _Grid, y: _Grid) -> _Grid:
    return abs(np.hypot(x, y) - 0.74) - 0.24


SHAPES: dict[str, Callable[[_Grid, _Grid], _Grid]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
}
"""Signed distance to each outline in units of the radius (negative inside; y points down)."""

COMBINATIONS: list[tuple[str, str, str]] = list(product(SIZES, COLOURS, SHAPES))
"""Every (size, colour, shape); the index in this list is the label."""


def is_unseen(label: int) -> bool:
    """Return whether a combination is kept out of ``train``: 16 of 96; every word still occurs."""
    size, rest = divmod(label, len(COLOURS) * len(SHAPES))
    colour, shape = divmod(rest, len(SHAPES))
    return (colour + 3 * size) % len(SHAPES) == shape


def caption(label: int) -> str:
    """Return the caption of a combination, such as ``"a large red circle"``."""
    return "a " + " ".join(COMBINATIONS[label])


class Shapes(DatasetSource):
    """One filled shape on a plain dark background: 2 sizes × 8 colours × 6 shapes.

    ``train`` (8,192) and ``test`` (800) show 80 of the 96 combinations, ``unseen`` (320) the other
    16, whose words all occur in training. Position, exact radius, colour and background depend
    on (split, index) alone, so images are the same on every machine.
    """

    def describe(self) -> DatasetCard:
        """Return the card."""
        return DatasetCard(
            "generated shapes with captions, 32×32; needs no download",
            image_size=32,
            num_classes=len(COMBINATIONS),
            has_captions=True,
            splits=("train", "test", "unseen"),
            license="apache-2.0",
            citation="drawn by spectok",
        )

    def load(self, config: DataConfig) -> Rows:
        """Return one split, drawn at the requested size."""
        from spectok.data.rows import Rows

        check_builtin(config, self.describe())
        size = self.preprocessing(config).image_size
        allowed = [
            k for k in range(len(COMBINATIONS)) if is_unseen(k) == (config.split == "unseen")
        ]
        count = min(_COUNTS[config.split], config.limit or _COUNTS[config.split])
        # A stride coprime to both numbers of combinations mixes the words of the first images.
        order = 37 * np.arange(count) % len(allowed)
        labels = np.array(allowed, dtype=np.int64)[order]
        draws = np.stack([_draw(_SEEDS[config.split], i) for i in range(count)])
        chunks = range(0, count, _CHUNK)
        images = np.concatenate(
            [draw_shapes(labels[i : i + _CHUNK], draws[i : i + _CHUNK], size) for i in chunks]
        )
        return Rows(
            list(images),
            [f"shape {index}" for index in range(count)],
            labels,
            [(caption(int(label)),) for label in labels],
            [caption(label).removeprefix("a ") for label in range(len(COMBINATIONS))],
        )


def draw_shapes(
    labels: np.ndarray, draws: Float[np.ndarray, "n 7"], size: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """Draw one shape per label, with outlines smoothed over one pixel.

    Args:
        labels: Indices in :data:`COMBINATIONS`, shape (N,).
        draws: Uniform numbers in [0, 1): radius, x, y, background, and three for the colour.
        size: Side of the images, in pixels.
    """
    sizes, colours, shapes = zip(*(COMBINATIONS[label] for label in labels))
    low, high = np.array([SIZES[name] for name in sizes]).T
    radius = size * (low + (high - low) * draws[:, 0])  # (n,) pixels
    margin = radius + 1.5  # smoothing reaches beyond the sharp corners
    centre = margin[:, None] + draws[:, 1:3] * (size - 2 * margin)[:, None]  # (n, 2)
    pixel = np.arange(size) + 0.5
    x = (pixel[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (pixel[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    x, y = np.broadcast_arrays(x, y)  # (n, h, w)
    distance = np.empty(x.shape)
    for name, outline in SHAPES.items():
        chosen = np.array([shape == name for shape in shapes])
        distance[chosen] = outline(x[chosen], y[chosen])
    inside = np.clip(0.5 - distance * radius[:, None, None], 0, 1)[..., None]  # (n, h, w, 1)
    colour = np.array([COLOURS[name] for name in colours]) + (draws[:, 4:7] - 0.5) * 20
    ground = np.repeat(10 + 50 * draws[:, 3:4], 3, axis=1)
    image = inside * colour[:, None, None, :] + (1 - inside) * ground[:, None, None, :]
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def _draw(seed: int, index: int) -> Float[np.ndarray, " 7"]:
    """Return the random numbers for one image."""
    return np.random.default_rng((seed, index)).random(7)
