"""Find and read the image, label and caption columns of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from spectok.data.rows import Captions
from spectok.errors import DataError, did_you_mean

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "png", "webp")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt")
LABEL_COLUMNS = ("label", "labels", "cls", "class")


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


def as_captions(values: Iterable[Any]) -> Captions:
    """Return caption values (texts, lists of texts, or None) as one tuple of non-empty texts."""
    texts: list[Any] = []
    for value in values:
        texts += value if isinstance(value, list | tuple) else [value]
    stripped = (str(text).strip() for text in texts if text is not None)
    return tuple(text for text in stripped if text)


def class_names_of(values: Iterable[Any]) -> list[str] | None:
    """Return the distinct texts among label values, sorted; None if they are not texts."""
    distinct = set(values)
    if not distinct or not all(isinstance(value, str) for value in distinct):
        return None
    return sorted(distinct, key=lambda v: (0, int(v), v) if v.isdecimal() else (1, 0, v))


def number_labels(
    values: Sequence[Any],
    class_names: list[str] | None,
    where: str,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Return label values as int64 of shape (N,).

    Args:
        values: Integers from 0, or texts.
        class_names: The text that each number stands for, if the values are texts.
        where: The file, for messages.
        names: The name of each row, for messages.

    Raises:
        DataError: If a value is neither, or missing: training needs a label for every image.
    """
    numbers: dict[Any, int] = {name: k for k, name in enumerate(class_names or [])}
    for value in set(values):
        if value in numbers and isinstance(value, str):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            row = next(i for i, other in enumerate(values) if other is value or other == value)
            raise DataError(
                f"{where}: label {value!r} of {names[row] if names else f'row {row}'} is not a "
                "class; use integers from 0 throughout, or texts throughout"
            )
        numbers[value] = value
    return np.array([numbers[value] for value in values], dtype=np.int64)
