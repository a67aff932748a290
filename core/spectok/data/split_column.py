"""Recognise splits by a column: ``split`` in metadata, in a table, or in the JSON of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spectok.data.listing import some
from spectok.data.split_words import QUALIFIERS, parse_split_name
from spectok.errors import DataError, shown

_CLEAR = ("split", "splits", "partition")
_OTHERS = ("subset", "usage", "phase", "set")
"""Columns that often say something else, and count only if each value is a split."""


@dataclass(frozen=True)
class SplitColumn:
    """What a column says of each row.

    Args:
        name: The column.
        splits: ``train``, ``test`` or ``validation``; None where it says nothing of the kind.
        unknown: The values that say nothing of the kind, and how often each occurs.
    """

    name: str
    splits: list[str | None]
    unknown: Counter[str]

    def rows(self) -> dict[str, list[int]]:
        """Return the rows of each split."""
        found: dict[str, list[int]] = {}
        for row, split in enumerate(self.splits):
            if split is not None:
                found.setdefault(split, []).append(row)
        return found

    def notes(self) -> list[str]:
        """Return remarks on how rows were divided by this column alone."""
        counts = ", ".join(f"{len(rows):,} {split}" for split, rows in sorted(self.rows().items()))
        left_out = [f"{note}; they are left out" for note in self.unknown_note()]
        return [f"splits are those of column {self.name}: {counts}", *left_out]

    def unknown_note(self) -> list[str]:
        """Return a remark on the rows of which the column says nothing of the kind."""
        if not self.unknown:
            return []
        return [
            f"column {self.name} says neither train nor test nor validation of "
            f"{self.unknown.total():,} rows, but {some(list(self.unknown))}"
        ]

    def check(self, known: Iterable[str | None], names: Callable[[int], str], where: str) -> None:
        """Refuse rows whose directory or file says another split.

        Args:
            known: What that says of each row; None where it says nothing.
            names: What messages call a row.
            where: The data, for messages.

        Raises:
            DataError: If a row is in two splits.
        """
        for row, (split, other) in enumerate(zip(self.splits, known)):
            if split is not None and other is not None and split != other:
                raise DataError(
                    f"{where}: {names(row)} is {split} by column {self.name!r}, but {other} by its "
                    "directory or file; correct one of them"
                )


def read_split_column(
    columns: Sequence[str], values_of: Callable[[str], Sequence[Any]]
) -> tuple[SplitColumn | None, list[str]]:
    """Return the column that says which split each row is in, if there is one, and remarks.

    Args:
        columns: The names of all columns.
        values_of: Returns the values of one.
    """
    notes: list[str] = []
    lower = {name.lower(): name for name in reversed(columns)}
    for name in [lower[word] for word in (*_CLEAR, *_OTHERS) if word in lower]:
        values = [_text(value) for value in values_of(name)]
        distinct = list(dict.fromkeys(values))
        meaning = {text: _split_of(text) for text in distinct}
        if not any(meaning.values()) and all(_split_of(t, short=True) for t in distinct):
            meaning = {text: _split_of(text, short=True) for text in distinct}
            if "train" not in meaning.values() or len({*meaning.values()}) < 2:
                meaning = dict.fromkeys(distinct)
        unknown = Counter(text or "empty" for text in values if meaning[text] is None)
        if any(meaning.values()) and (name.lower() in _CLEAR or not unknown):
            return SplitColumn(name, [meaning[text] for text in values], unknown), notes
        if name.lower() in _CLEAR and any(distinct):
            told = some([text for text in distinct if text])
            notes.append(f"column {name} is not taken for splits; its values are {told}")
    return None, notes


def _text(value: Any) -> str:
    """Return a value as text; empty if it is missing."""
    if value is None or value != value:  # NaN
        return ""
    return value.strip() if isinstance(value, str) else shown(value)


def _split_of(text: str, short: bool = False) -> str | None:
    """Return the split that a value names."""
    parsed = parse_split_name(text, short=short)
    return parsed.split if parsed and (not parsed.rest or parsed.rest in QUALIFIERS) else None
