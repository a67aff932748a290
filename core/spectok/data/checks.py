"""One pass over every image before the first step: its size and mode, or why it cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from spectok.data.decode import UnreadableImage, inspect_image, open_image
from spectok.data.preprocessing import Preprocessing
from spectok.data.report import DataReport, count_captions, count_labels
from spectok.data.rows import Problem, Rows


@dataclass
class Checks:
    """The findings of one pass over every image.

    Args:
        how: Whether images were decoded, or only their headers and ends read.
        kept: Places of the images that can be read.
        problems: Those that cannot.
        sizes: Images of each original (width, height).
        modes: Images of each original mode.
        pixels: The decoded images that can be read, (N, C, H, W).
        num_bytes: Encoded size of each image that can be read; only where not decoded.
    """

    how: Literal["decoded", "headers"]
    kept: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    pixels: UInt8[np.ndarray, "n c h w"] | None = None
    num_bytes: list[int] = field(default_factory=list)

    def add(self, index: int, size: tuple[int, int], mode: str) -> None:
        """Record an image that can be read."""
        self.kept.append(index)
        self.sizes[size] += 1
        self.modes[mode] += 1


def decode_rows(rows: Rows, preprocessing: Preprocessing) -> Checks:
    """Decode every image into one array."""
    checks = Checks("decoded")
    pixels = np.empty((len(rows), *preprocessing.image_shape), dtype=np.uint8)
    for index, reference in enumerate(_each(rows)):
        try:
            image = open_image(reference)
            pixels[len(checks.kept)] = preprocessing(image)
        except UnreadableImage as error:
            checks.problems.append(Problem(rows.name(index), str(error)))
        else:
            checks.add(index, image.size, image.mode)
    checks.pixels = pixels[: len(checks.kept)]
    return checks


def inspect_rows(rows: Rows) -> Checks:
    """Read the header and the end of every image."""
    checks = Checks("headers")
    for index, reference in enumerate(_each(rows)):
        try:
            size, mode, num_bytes = inspect_image(reference)
        except UnreadableImage as error:
            checks.problems.append(Problem(rows.name(index), str(error)))
        else:
            checks.add(index, size, mode)
            checks.num_bytes.append(num_bytes)
    return checks


def make_report(rows: Rows, checks: Checks, name: str, preprocessing: Preprocessing) -> DataReport:
    """Return the report on the rows that can be read.

    Args:
        rows: Only those rows.
        checks: What looking at all of them found.
        name: Data set and split.
        preprocessing: The shape images get.
    """
    return DataReport(
        name=name,
        count=len(rows),
        image_shape=preprocessing.image_shape,
        sizes=dict(checks.sizes.most_common()),
        modes=dict(checks.modes.most_common()),
        unreadable=[*rows.problems, *checks.problems],
        checked=checks.how,
        labels=count_labels(rows.labels, rows.count_classes(), rows.class_names),
        captions=count_captions(rows.captions),
        notes=[*rows.notes, *_notes(rows, checks, preprocessing)],
    )


def _notes(rows: Rows, checks: Checks, preprocessing: Preprocessing) -> list[str]:
    """Return remarks on images and captions that a person may not expect."""
    notes, side = [], preprocessing.image_size
    enlarged = sum(count for size, count in checks.sizes.items() if min(size) < side)
    if enlarged and any(step.startswith(("resize", "stretch")) for step, _ in preprocessing.steps):
        notes.append(f"{enlarged:,} images have a side below {side} pixels and are enlarged")
    bare = [rows.name(index) for index, texts in enumerate(rows.captions or []) if not texts]
    if bare:
        notes.append(f"{len(bare):,} images have no caption, such as {bare[0]}")
    if checks.how == "headers":
        notes.append("images are decoded when asked for, so damage inside one shows only then")
    return notes


def _each(rows: Rows) -> Iterable[Any]:
    """Yield every image reference; one that cannot even be fetched raises where it is opened."""
    return (rows.images[index] for index in range(len(rows)))
