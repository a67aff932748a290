"""Hold a part of the data out as ``test`` where there is none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from spectok.data.data_config import DataConfig
from spectok.data.rows import Rows
from spectok.errors import DataError

_MOST_HELD_OUT = 1000


def hold_out(rows: Rows, config: DataConfig) -> Rows:
    """Return the ``train`` or the ``test`` part of data that has no test split of its own.

    The images are sorted by a hash of their names, which mixes classes and keeps their order when
    others are added; the last ``num_held_out`` of them are ``test``.

    Raises:
        DataError: If another split is requested, or no image is left for this one.
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
    """Return how many images are held out by default: a tenth, at most a thousand."""
    return min(_MOST_HELD_OUT, -(-count // 10)) if count > 1 else 0


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
