"""Read size, colour and shape off pictures of the data set ``shapes``, by fitting its outlines.

Nothing is learned: pictures are compared with the outlines from which ``shapes`` is drawn, so
generated ones are judged by the rule that made the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from spectok.data.shapes import COLOURS, SHAPES, SIZES
from spectok.errors import InputError

RADII = np.linspace(0.12, 0.44, 17)
"""Radii to try, as fractions of the image side."""
STEPS = np.arange(-1.0, 1.5, 0.5)
"""Shifts to try, in pixels, around the centre of mass."""
TRIANGLE_OFFSET = 0.2
"""Distance of a triangle's centre of mass from its centre, in units of the radius."""
NUM_SOLID = 10
"""Number of pixels assumed to lie wholly inside."""
CLEAR = 0.6
"""Least overlap with an outline that counts as a shape; real pictures have 0.9 or more."""

_Map = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class ShapeReading:
    """What one picture shows.

    Args:
        size: ``"small"`` or ``"large"``, whichever is nearer to the radius.
        colour: The nearest of the named colours.
        shape: The outline with the largest overlap.
        overlap: Intersection over union with that outline, 0 to 1.
    """

    size: str
    colour: str
    shape: str
    overlap: float

    @property
    def caption(self) -> str | None:
        """The caption of such a picture; None if it shows no clear shape."""
        return f"a {self.size} {self.colour} {self.shape}" if self.overlap >= CLEAR else None


def read_shapes(images: UInt8[np.ndarray, "n h w 3"]) -> list[ShapeReading]:
    """Read each picture: one filled shape, away from the border, on a plain background.

    Raises:
        InputError: If they are not square 8-bit colour images.
    """
    if (
        images.ndim != 4
        or images.dtype != np.uint8
        or images.shape[1:] != (*[images.shape[1]] * 2, 3)
    ):
        raise InputError(
            f"images of shape {images.shape} and type {images.dtype} cannot be read as shapes; "
            "give uint8 of shape (N, H, H, 3)"
        )
    return [_read(image.astype(float)) for image in images]


def _read(image: Float[np.ndarray, "h w 3"]) -> ShapeReading:
    rim = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    ground = np.median(rim, axis=0)
    contrast = np.linalg.norm(image - ground, axis=-1)  # (h, w)
    solid = contrast >= np.sort(contrast, axis=None)[-NUM_SOLID]
    colour = np.median(image[solid], axis=0)
    names = list(COLOURS)
    nearest = np.linalg.norm(np.array([COLOURS[n] for n in names]) - colour, axis=-1).argmin()
    towards = colour - ground
    length = max(float(towards @ towards), 1e-6)
    inside = ((image - ground) @ towards / length).clip(0, 1)  # (h, w)
    shape, radius, overlap = _fit(inside)
    middles = {name: sum(bounds) / 2 for name, bounds in SIZES.items()}
    size = min(middles, key=lambda name: abs(middles[name] - radius))
    return ShapeReading(size, names[nearest], shape, overlap)


def _fit(inside: _Map) -> tuple[str, float, float]:
    """Return the best outline, its radius as a fraction of the side, and the overlap."""
    side = len(inside)
    centres = np.arange(side) + 0.5
    total = max(float(inside.sum()), 1e-6)
    middle = np.array([(inside.sum(0) @ centres) / total, (inside.sum(1) @ centres) / total])
    found = []
    for shape in SHAPES:
        offset = np.array([0.0, TRIANGLE_OFFSET if shape == "triangle" else 0.0])
        tried = [(r * side, *(middle - offset * r * side)) for r in RADII]
        best = _best(inside, shape, np.array(tried))[1]
        shifts = [(best[1] + dx, best[2] + dy) for dx in STEPS for dy in STEPS]
        radii = best[0] + side * np.diff(RADII)[0] * np.array([-0.5, 0, 0.5])
        overlap, best = _best(inside, shape, np.array([(r, *s) for r in radii for s in shifts]))
        found.append((overlap, shape, best[0] / side))
    overlap, shape, radius = max(found)
    return shape, float(radius), float(overlap)


def _best(
    inside: _Map, shape: str, tried: Float[np.ndarray, "k 3"]
) -> tuple[float, Float[np.ndarray, "3"]]:
    """Return the largest overlap with one outline, and the radius and centre that give it."""
    radius, cx, cy = (column[:, None, None] for column in tried.T)
    pixel = np.arange(len(inside)) + 0.5
    x, y = np.broadcast_arrays((pixel[None, None] - cx) / radius, (pixel[:, None] - cy) / radius)
    drawn = (0.5 - SHAPES[shape](x, y) * radius).clip(0, 1)  # (k, h, w)
    both = np.minimum(drawn, inside).sum((1, 2))
    overlaps = both / np.maximum(np.maximum(drawn, inside).sum((1, 2)), 1e-6)
    best = int(overlaps.argmax())
    return float(overlaps[best]), tried[best]
