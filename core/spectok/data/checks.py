"""Check every image before the first step: which can be read, and what they are like."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spectok.data.decode import (
    MAX_8_BIT,
    MAX_16_BIT,
    UnreadableImage,
    inspect_image,
    is_deep,
    open_image,
    value_range,
)
from spectok.data.preprocessing import Preprocessing
from spectok.data.report import DataReport, count_captions, count_labels
from spectok.data.rows import Problem, Rows

_LOOKED_INTO = 100
_SMALL_PART, _SMALL_PART_OF_8_BITS = 1 / 4, 1 / 8
_USUAL_WHITES = (1, 255, 1023, 4095, 16383)


@dataclass
class Checks:
    """What checking every image found.

    Args:
        how: Whether images were decoded, or only their headers and file ends were read.
        kept: Indices of the images that can be read.
        problems: The images that cannot be read.
        sizes: Number of images of each original (width, height).
        modes: Number of images of each original mode.
        pixels: The decoded images that can be read, (N, C, H, W).
        encoded: Encoded size of each image that can be read, and a checksum of parts of it; empty
            if images were decoded.
        ranges: Least and greatest value of grey images of more than 8 bits; of the first ones only,
            if images were not decoded.
        ranges_of_8_bits: The same of images of 8 bits, up to the first that is not dark: of masks
            with values 0 to 19, all are, and of photographs hardly any.
    """

    how: Literal["decoded", "headers"]
    kept: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    pixels: UInt8[np.ndarray, "n c h w"] | None = None
    encoded: list[tuple[int, int]] = field(default_factory=list)
    ranges: list[tuple[float, float]] = field(default_factory=list)
    ranges_of_8_bits: list[tuple[float, float]] = field(default_factory=list)

    def add(self, index: int, size: tuple[int, int], mode: str) -> None:
        """Record an image that can be read."""
        self.kept.append(index)
        self.sizes[size] += 1
        self.modes[mode] += 1

    def wants_range(self, mode: str, max_value: float | None) -> bool:
        """Return whether it is worth looking into a further image of this mode."""
        if self.how == "headers" and len(self._ranges(mode)) >= _LOOKED_INTO:
            return False
        cut_off = max_value is not None and max_value < MAX_8_BIT
        return is_deep(mode) or cut_off or _are_dark(self.ranges_of_8_bits, MAX_8_BIT)

    def add_range(self, image: Image.Image) -> None:
        """Record the values of an image."""
        self._ranges(image.mode).append(value_range(image))

    def _ranges(self, mode: str) -> list[tuple[float, float]]:
        return self.ranges if is_deep(mode) else self.ranges_of_8_bits


def decode_rows(rows: Rows, preprocessing: Preprocessing) -> Checks:
    """Decode every image into one array."""
    checks = Checks("decoded")
    pixels = np.empty((len(rows), *preprocessing.image_shape), dtype=np.uint8)
    for index in range(len(rows)):
        try:
            image = open_image(rows.images[index])
            pixels[len(checks.kept)] = preprocessing(image)
        except UnreadableImage as error:
            checks.problems.append(Problem(rows.name(index), str(error)))
        else:
            checks.add(index, image.size, image.mode)
            if checks.wants_range(image.mode, preprocessing.max_value):
                checks.add_range(image)
    checks.pixels = pixels[: len(checks.kept)]
    return checks


def inspect_rows(rows: Rows, preprocessing: Preprocessing) -> Checks:
    """Read the header and the end of every image."""
    checks = Checks("headers")
    for index in range(len(rows)):
        try:
            reference = rows.images[index]
            header = inspect_image(reference)
            preprocessing.check_header(header.size, header.mode)
            if checks.wants_range(header.mode, preprocessing.max_value):
                checks.add_range(open_image(reference))
        except UnreadableImage as error:
            checks.problems.append(Problem(rows.name(index), str(error)))
        else:
            checks.add(index, header.size, header.mode)
            checks.encoded.append((header.num_bytes, header.sample))
    return checks


def make_report(rows: Rows, checks: Checks, name: str, preprocessing: Preprocessing) -> DataReport:
    """Return the report on the rows that can be read.

    Args:
        rows: The rows that can be read.
        checks: What checking all rows found.
        name: Data set and split.
        preprocessing: Decides the shape of the images.
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
    """Return remarks on what may be unexpected about the images and captions."""
    notes, side = [], preprocessing.image_size
    enlarged = sum(count for size, count in checks.sizes.items() if min(size) < side)
    if enlarged and any(step.startswith(("resize", "stretch")) for step, _ in preprocessing.steps):
        notes.append(f"{enlarged:,} images have a side below {side} pixels and are enlarged")
    bare = [rows.name(index) for index, texts in enumerate(rows.captions or []) if not texts]
    if bare:
        notes.append(f"{len(bare):,} images have no caption, such as {bare[0]}")
    notes += _range_notes(checks.ranges, preprocessing.max_value)
    notes += _notes_on_8_bits(checks, preprocessing.max_value)
    if checks.how == "headers":
        notes.append("images are decoded on demand, so damage inside a file shows only then")
    return notes


def _range_notes(ranges: list[tuple[float, float]], max_value: float | None) -> list[str]:
    """Return remarks on grey images of more than 8 bits that come out dark, or cut off.

    They are never scaled one by one: which value is white is a property of all of them together.
    """
    if not ranges:
        return []
    white = max_value or MAX_16_BIT
    looked = f"{len(ranges):,} looked into, of grey images with more than 8 bits"
    dark = [high for _, high in ranges if 0 < high < white * _SMALL_PART]
    outside = sum(low < 0 or high > white for low, high in ranges)
    notes = []
    if dark:
        fitting = next((v for v in _USUAL_WHITES if v >= max(dark)), max(dark))
        notes.append(
            f"{len(dark):,} of {looked}, reach only {max(dark):,g} of {white:,g} and come out "
            f"almost black; data.max_value={fitting:g} would make that white"
        )
    if outside:
        least, most = min(low for low, _ in ranges), max(high for _, high in ranges)
        notes.append(
            f"{outside:,} of {looked}, have values outside 0 to {white:,g} ({least:,g} to {most:,g}"
            "), which are cut off; data.max_value says what is white"
        )
    return notes


def _notes_on_8_bits(checks: Checks, max_value: float | None) -> list[str]:
    """Return remarks on images of 8 bits that all come out dark, or some of them cut off."""
    white = min(max_value or MAX_8_BIT, MAX_8_BIT)
    highs = [high for _, high in checks.ranges_of_8_bits]
    most = max(highs, default=0)
    looked = f"{len(highs):,} looked into, of images with 8 bits"
    deep_are_dark = _are_dark(checks.ranges, max_value or MAX_16_BIT)
    if most and deep_are_dark and _are_dark(checks.ranges_of_8_bits, white):
        return [
            f"all {looked}, reach only {most:,g} of {white:,g} and come out almost black; "
            f"data.max_value={most:g} would make that white"
        ]
    if outside := sum(high > white for high in highs):
        return [
            f"{outside:,} of {looked}, have values above {white:,g} (up to {most:,g}), which are "
            "cut off; data.max_value says what is white"
        ]
    return []


def _are_dark(ranges: list[tuple[float, float]], white: float) -> bool:
    """Return whether no image has a value above an eighth of what is white."""
    return all(high <= white * _SMALL_PART_OF_8_BITS for _, high in ranges)
