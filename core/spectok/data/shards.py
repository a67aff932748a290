"""WebDataset tar shards, read in place.

A shard is an uncompressed tar file in which members with one name and different suffixes form a
row: ``000017.jpg``, ``000017.txt``, ``000017.cls`` or ``000017.json``. Since members lie in the
archive as they are, an index of their offsets gives random access: shuffling and resuming are
exact, nothing is copied, and a truncated shard is found before training, where a stream would end
early in silence.
"""

from __future__ import annotations

import glob
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectok.data.columns import (
    CAPTION_COLUMNS,
    LABEL_COLUMNS,
    as_captions,
    choose_column,
    class_names_of,
    number_labels,
)
from spectok.data.data_config import DataConfig
from spectok.data.decode import IMAGE_SUFFIXES
from spectok.data.rows import Problem, Rows
from spectok.data.splits import KNOWN_SPLITS, choose_split
from spectok.errors import DataError

_SMALL = {"txt", "text", "caption", "captions", "prompt", "cls", "label", "class", "json"}


@dataclass(frozen=True)
class Member:
    """An encoded image inside a shard."""

    shard: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Return the encoded image; the shard is opened anew, so any worker process may ask."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass
class _Row:
    name: str
    image: Member | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def read_shards(pattern: str, config: DataConfig) -> Rows:
    """Index the tar shards of one split.

    Args:
        pattern: A shard, a directory of shards, or a pattern such as ``shards/*.tar``. Where the
            names of shards start with the name of a split (``train-0001.tar``), it is one.
        config: Gives the split and the column names.

    Raises:
        DataError: If no shard or no image is found, or a shard is no tar file.
    """
    shards, owns_split = _shards_of_split(_find_shards(pattern), config.split, pattern)
    problems: list[Problem] = []
    rows = [row for shard in shards for row in _index_shard(shard, problems)]
    pictured = [row for row in rows if row.image is not None]
    if not pictured:
        found = f" ({problems[0].reason})" if problems else ""
        raise DataError(f"{pattern} holds no image{found}; each row needs one, such as 0001.jpg")
    result = _as_rows(pictured, pattern, config)
    result.problems.extend(problems)
    if len(pictured) < len(rows):
        bare = next(row.name for row in rows if row.image is None)
        result.notes.append(f"{len(rows) - len(pictured):,} rows have no image, such as {bare}")
    return Rows(**{**vars(result), "owns_split": owns_split})


def _find_shards(pattern: str) -> list[Path]:
    """Return the shards that a path or pattern names, sorted."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
    elif path.is_file():
        shards = [path]
    else:
        shards = [Path(name) for name in sorted(glob.glob(str(path)))]
    if not shards:
        raise DataError(
            f"{pattern} matches no file; give a tar shard or a pattern such as 'x/*.tar'"
        )
    return shards


def _shards_of_split(shards: list[Path], split: str, where: str) -> tuple[list[Path], bool]:
    """Return the shards of a split, and whether they are the whole split."""
    by_split: dict[str, list[Path]] = {}
    for shard in shards:
        prefix = shard.stem.replace("_", "-").split("-")[0].lower()
        by_split.setdefault(prefix if prefix in KNOWN_SPLITS else "", []).append(shard)
    if "" in by_split:
        return shards, False
    name, owns_split = choose_split(by_split, split, where)
    return by_split[name], owns_split


def _index_shard(path: Path, problems: list[Problem]) -> list[_Row]:
    """Return the rows of a shard, reading only headers, captions and labels.

    What is damaged is added to ``problems``.
    """
    rows: dict[str, _Row] = {}
    end, size = 0, path.stat().st_size
    damage = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + member.size
                if member.isfile() and end <= size:
                    _add_member(rows, path, archive, member)
    except tarfile.TarError as error:
        damage = str(error)
    # A complete archive ends with two empty blocks; a cut may fall between two members, too.
    if damage is None and size < end + 2 * tarfile.BLOCKSIZE:
        damage = "its end is missing"
    if damage is not None:
        if rows:
            rows.popitem()  # the last row may lack members
        what = f"damaged after {len(rows):,} rows" if end else "not a tar file"
        problems.append(Problem(path.name, f"{what}: {damage}"))
    return list(rows.values())


def _add_member(
    rows: dict[str, _Row], path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> None:
    """Add one member of a shard to its row."""
    directory, _, file_name = member.name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    if not stem:  # a hidden file
        return
    key, suffix = f"{directory}/{stem}".strip("/"), suffix.lower()
    row = rows.setdefault(key, _Row(f"{path.name}:{key}"))
    if f".{suffix}" in IMAGE_SUFFIXES:
        row.image = Member(str(path), member.offset_data, member.size)
    elif suffix in _SMALL:
        content = archive.extractfile(member)
        assert content is not None
        row.columns.update(_parse(suffix, content.read(), row.name))


def _parse(suffix: str, content: bytes, name: str) -> dict[str, Any]:
    """Return the columns in a text, class or JSON member."""
    try:
        text = content.decode("utf-8")
        if suffix == "json":
            value = json.loads(text)
            return value if isinstance(value, dict) else {}
        return {suffix: int(text) if suffix == "cls" else text}
    except ValueError as error:
        raise DataError(
            f"{name}.{suffix} cannot be read ({error}); write the shard again"
        ) from error


def _as_rows(rows: list[_Row], where: str, config: DataConfig) -> Rows:
    """Return indexed rows with their label and caption columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row.columns))
    names = [row.name for row in rows]
    captions, labels, class_names = None, None, None
    if name := choose_column(config.caption_column, CAPTION_COLUMNS, columns, where):
        captions = [as_captions([row.columns.get(name)]) for row in rows]
    if name := choose_column(config.label_column, LABEL_COLUMNS, columns, where):
        values = [row.columns.get(name) for row in rows]
        class_names = class_names_of(values)
        labels = number_labels(values, class_names, where, names)
    return Rows([row.image for row in rows], names, labels, captions, class_names)
