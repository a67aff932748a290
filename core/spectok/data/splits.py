"""Which part of the data is ``train`` and which is ``test``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from spectok.data.data_config import DataConfig
from spectok.data.rows import Rows
from spectok.errors import DataError, did_you_mean

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val", "dev"),
    "validation": ("validation", "valid", "val", "dev"),
}
KNOWN_SPLITS = frozenset(alias for aliases in SPLIT_NAMES.values() for alias in aliases)
_MOST_HELD_OUT = 1000


def choose_split(available: Iterable[str], split: str, where: str) -> tuple[str, bool]:
    """Return the real name of a split, and whether it is the whole split.

    Without a test split of its own, ``train`` and ``test`` both come from the training split, and
    :func:`hold_out` tells them apart.

    Args:
        available: The real names of the splits there are.
        split: The split asked for.
        where: The data set, for messages.

    Raises:
        DataError: If there is no such split.
    """
    available = list(available)
    found = _first(SPLIT_NAMES.get(split, (split,)), available)
    has_test = _first(SPLIT_NAMES["test"], available) is not None
    if split in ("train", "test") and not has_test:
        only = _first(SPLIT_NAMES["train"], available) or (available[0] if available else None)
        if only is not None:
            return only, False
    if found is None:
        hint = did_you_mean(split, available)
        raise DataError(f"{where} has no split {split!r}{hint}; it has {', '.join(available)}")
    return found, True


def hold_out(rows: Rows, config: DataConfig) -> Rows:
    """Return the ``train`` or the ``test`` part of data that has no test split of its own.

    The images are put in the order of a hash of their names, which mixes classes and stays put when
    images are added; the last ``num_held_out`` of them are ``test``.

    Raises:
        DataError: If another split is asked for, or too few images are left for this one.
    """
    if config.split not in ("train", "test"):
        raise DataError(f"the data has no split {config.split!r}; use 'train' or 'test'")
    count, held_out = len(rows), config.num_held_out
    if held_out is None:
        held_out = default_held_out(count)
    order = np.array(sorted(range(count), key=lambda i: _hash(rows.name(i))), dtype=np.int64)
    first_test = max(0, count - held_out)
    part = order[:first_test] if config.split == "train" else order[first_test:]
    if not len(part):
        raise DataError(
            f"no image is left for split {config.split!r} ({count} images, {held_out} held out); "
            "change data.num_held_out or add images"
        )
    note = f"no test split: {held_out:,} of {count:,} images are held out as 'test'"
    return replace(rows.select(part), notes=[*rows.notes, note])


def default_held_out(count: int) -> int:
    """Return how many images are held out unless a recipe says: a tenth, at most a thousand."""
    return min(_MOST_HELD_OUT, -(-count // 10)) if count > 1 else 0


def _first(wanted: Iterable[str], available: list[str]) -> str | None:
    return next((name for name in wanted if name in available), None)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
