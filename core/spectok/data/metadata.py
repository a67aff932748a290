"""Read what ``metadata.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` says of the images beside it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectok.errors import DataError, shown
from spectok.reading import check_regular, parse_json, read_text

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
MAX_BYTES = 4 << 30
Entry = dict[str, Any]

csv.field_size_limit(MAX_BYTES)  # Python's own is 131,072 characters, less than a long text


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a metadata file, each with a ``file_name``.

    Raises:
        DataError: If the file cannot be read, or an entry has no file name.
    """
    if path.suffix == ".parquet":
        entries: list[Any] = _read_parquet(path)
    else:
        text = read_text(path, DataError, MAX_BYTES)
        if path.suffix == ".jsonl":
            entries = _read_lines(path, text)
        else:
            entries = list(_read_table(path, text, "\t" if path.suffix == ".tsv" else ","))
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DataError(f"{path}: entry {number} has no file_name; give each entry one")
    return entries


def _read_lines(path: Path, text: str) -> list[Any]:
    lines = text.split("\n")  # splitlines() would also split at U+2028 inside a caption
    return [
        parse_json(line, f"{path}, line {number}", DataError)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read_table(path: Path, text: str, separator: str) -> Iterator[Entry]:
    """Yield the rows of a table; one with more or fewer fields than the header is refused.

    Joining the fields of a row that has too many would guess where a caption begins.
    """
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    try:
        for row in rows:
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                _check_header(path, header)
            elif len(row) != len(header):
                what = "commas" if separator == "," else "tabs"
                raise DataError(
                    f"{path}, line {rows.line_num} has {len(row)} fields where the header has "
                    f"{len(header)}; put a text that holds {what} in double quotes"
                )
            else:
                yield dict(zip(header, row))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {rows.line_num} cannot be read ({error}); a text in double quotes must "
            'end with one, and "" stands for a quote inside it'
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    """Refuse a table without the column ``file_name``, such as one with other separators."""
    if "file_name" not in header:
        found = ", ".join(map(shown, header[:5]))
        separators = "tabs" if path.suffix == ".tsv" else "commas"
        raise DataError(
            f"{path} has no column file_name; its first line has {found}; name the columns there, "
            f"separated by {separators}"
        )
    if len(set(header)) < len(header):
        raise DataError(f"{path} has two columns of one name in its first line; rename one")


def _read_parquet(path: Path) -> list[Entry]:
    from pyarrow import parquet

    check_regular(path, DataError)
    try:
        return parquet.read_table(os.fspath(path)).to_pylist()
    except Exception as error:  # pyarrow's, and those of damaged texts
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not readable as parquet ({reason}); save it again") from error
