"""Find and read the image, label and caption columns of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np

from spectok.data.rows import Captions
from spectok.errors import DataError, did_you_mean, one_line, shown

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "png", "webp")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt")
LABEL_COLUMNS = ("label", "labels", "cls", "class")
MAX_CLASSES = 10_000_000
_BYTE_ORDER_MARK = "\ufeff"
_LONGEST_NUMBER = 18  # digits


def choose_column(
    given: str | None, candidates: Iterable[str], columns: Sequence[str], where: str
) -> str | None:
    """Return the given column, or else the first candidate that exists.

    Raises:
        DataError: If the given column does not exist.
    """
    if given is not None and given not in columns:
        hint = did_you_mean(given, columns)
        raise DataError(f"{where} has no column {given!r}{hint}; it has {', '.join(columns)}")
    return given or next((name for name in candidates if name in columns), None)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text file, ended by any system's line break and by nothing else."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def as_captions(values: Any, where: str) -> Captions:
    """Return the captions of an image as one tuple of texts, without those that are empty.

    Args:
        values: Texts, lists of texts, numbers, or what stands for no caption: None and NaN.
        where: The image, for messages.

    Raises:
        DataError: If a value is anything else.
    """
    texts: list[str] = []
    for value in values:
        for text in value if isinstance(value, list | tuple) else [value]:
            if text is None or text != text:  # NaN
                continue
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                raise DataError(
                    f"{one_line(where)}: caption {shown(text)} is not a text; write texts, or "
                    "lists of texts"
                )
            texts.append(str(text).strip().strip(_BYTE_ORDER_MARK).strip())
    return tuple(text for text in texts if text)


def class_names_of(values: Iterable[Any]) -> list[str] | None:
    """Return the distinct texts among label values, sorted; None if they are not all texts.

    Values that stand for no label do not count.
    """
    present = [value for value in values if not _is_missing(value)]
    if not present or not all(isinstance(value, str) for value in present):
        return None
    distinct = {normalize("NFC", value) for value in present}
    return sorted(distinct, key=lambda v: (0, int(v), v) if _is_number(v) else (1, 0, v))


def number_labels(
    values: Sequence[Any],
    class_names: list[str] | None,
    where: str,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray | None, list[str]]:
    """Return label values as int64 of shape (N,), and remarks.

    Args:
        values: Integers from 0, or texts. If no image has a label (all values are missing, empty
            or -1, as in the test splits of some data sets), there are no labels.
        class_names: The text that each number stands for, if the values are texts.
        where: The file, for messages.
        names: The name of each row, for messages.

    Raises:
        DataError: If a value is neither, or one is missing: training needs a label for every image.
    """
    if all(_is_missing(value) for value in values):
        return None, ["no labels: every image's label is empty or -1"] if len(values) else []
    numbers: dict[Any, int] = {name: k for k, name in enumerate(class_names or [])}
    labels = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        number = numbers.get(normalize("NFC", value)) if isinstance(value, str) else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_CLASSES:
            name = one_line(names[row]) if names else f"row {row}"
            raise DataError(
                f"{where}: label {shown(value)} of {name} is not a class; use integers from 0 "
                "throughout, or texts throughout, or set data.labels to false if none are needed"
            )
        labels[row] = number
    return labels, []


def _is_missing(value: Any) -> bool:
    """Return whether a value stands for no label."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, int | str) and value in (-1, "", "-1"))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _LONGEST_NUMBER
