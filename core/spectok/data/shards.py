"""WebDataset tar shards, read in place.

A shard is an uncompressed tar file in which members with the same name and different suffixes form
a row: ``000017.jpg``, ``000017.txt``, ``000017.cls`` or ``000017.json``. By the convention of such
shards, the name ends at the first dot: beside ``000017.jpg``, ``000017.mask.png`` is another column
of that row, not another image. Where no image has the name alone, as with ``a.b.png`` and
``a.c.png``, each is a row of its own, with the texts of its whole name and of ``a``.

Splits are those of the shards, ``train-0001.tar`` and ``test-0001.tar``; or else those of the
directories inside, ``train/cat/1.png``, with the directories below them as classes; or else what
the JSON of each row says in its column ``split``.

Members are stored as they are, so an index of their offsets gives random access: shuffling and
resuming are exact, nothing is copied, and a truncated shard is found before training, whereas a
stream would silently end early.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spectok.data.columns import (
    CAPTION_COLUMNS,
    LABEL_COLUMNS,
    as_captions,
    choose_column,
    class_names_of,
    lines_of,
    number_labels,
)
from spectok.data.data_config import DataConfig
from spectok.data.decode import IMAGE_SUFFIXES, UnreadableImage
from spectok.data.directory_labels import directory_labels
from spectok.data.listing import composed, list_files, local_path, some, suffix_of, unread_note
from spectok.data.rows import Problem, Rows
from spectok.data.split_column import read_split_column
from spectok.data.split_links import rename_by_links
from spectok.data.split_names import Division
from spectok.errors import DataError
from spectok.places import missing
from spectok.reading import MAX_TEXT_BYTES, check_regular, parse_json

_CAPTIONS = {"txt", "text", "caption", "captions", "prompt"}
_SMALL = {*_CAPTIONS, "cls", "label", "class", "json"}


@dataclass(frozen=True)
class Member:
    """An encoded image inside a shard."""

    shard: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Return the encoded image; opens the shard anew, so any worker process may call it."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise UnreadableImage(f"{self.shard} has become shorter")
        return content


@dataclass
class _Row:
    """An image with its texts.

    Args:
        name: The shard and the name inside it.
        path: The directory inside, and a name that no other row has.
        image: Where the image is.
        columns: Texts, label and what the JSON says.
    """

    name: str
    path: str
    image: Member
    columns: dict[str, Any]


@dataclass
class _Group:
    """The members whose names agree up to the first dot.

    Args:
        name: The shard and the name.
        directory: The directory inside the shard.
        images: Suffix and image by the part of the name between the first and the last dot.
        texts: That part, and the columns, of texts, labels and JSON.
    """

    name: str
    directory: str = ""
    images: dict[str, tuple[str, Member]] = field(default_factory=dict)
    texts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass
class _Findings:
    """What is to be reported of many shards.

    Args:
        problems: Damaged shards.
        unread: How many members of each suffix are not read.
        bare: Groups without an image.
        several: Groups with several images of one name.
        dotted: Rows called by a name with several dots.
        paths: The paths of all rows, each of which is given once.
    """

    problems: list[Problem] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    bare: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    dotted: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def notes(self) -> list[str]:
        """Return remarks, one sentence each."""
        remarks = {
            "rows have no image": self.bare,
            "rows have several images, of which the last is read": self.several,
            "rows are called by their whole names, which have several dots": self.dotted,
        }
        told = [f"{len(n):,} {what}: {some(n)}" for what, n in remarks.items() if n]
        return told + unread_note(self.unread.elements(), "members of shards are")


def read_shards(pattern: str, config: DataConfig) -> Rows:
    """Index the tar shards of one split.

    Args:
        pattern: A shard, a directory of shards, or a pattern such as ``shards/*.tar``. Shards
            named after a split (``train-0001.tar``, ``test/0001.tar``) belong to that split.
        config: Names the split and the columns.

    Raises:
        DataError: If no shard or no image is found, or a shard is not a tar file.
    """
    root, names, problems, notes = _find_shards(pattern)
    division = Division(names, file_names=True)
    chosen, owns_split = division.choose(config.split, pattern)
    findings = _Findings(problems)
    rows = [row for name in chosen for row in _index_shard(root / name, findings)]
    if not rows:
        found = f" ({findings.problems[0].reason})" if findings.problems else ""
        held = "".join(f" ({note})" for note in unread_note(findings.unread.elements()))
        raise DataError(
            f"{pattern} holds no image{found}{held}; each row needs one, such as 0001.jpg"
        )
    inside, remarks = _divide_rows(rows, pattern)
    if division.splits:
        _check_inside(rows, inside, division.place(chosen[0])[0], pattern)
        inside = None
    else:
        _, owns_split = inside.choose(config.split, pattern)
        remarks += inside.notes()
    result = _as_rows(rows, inside, pattern, config)
    notes = [*result.notes, *division.notes(), *remarks, *notes, *findings.notes()]
    return replace(result, problems=findings.problems, notes=notes, owns_split=owns_split)


def _divide_rows(rows: list[_Row], where: str) -> tuple[Division, list[str]]:
    """Return which rows belong to which split by directories inside shards and by a column."""
    paths = [row.path for row in rows]
    division = Division(paths)
    columns = list(dict.fromkeys(key for row in rows for key in row.columns))
    column, notes = read_split_column(columns, lambda key: [r.columns.get(key) for r in rows])
    if column is not None:
        division.declare(column, paths, where)
        notes += column.unknown_note()
    return division, notes


def _check_inside(rows: list[_Row], inside: Division, split: str | None, where: str) -> None:
    """Refuse shards of ``train`` that hold rows of ``test``, or the reverse."""
    for row in rows:
        found, _ = inside.place(row.path)
        if found is not None and found != split and "train" in (found, split):
            raise DataError(
                f"{where}: {row.name} is {found} by what its shard holds, but {split} by the name "
                "of the shard; correct one of them, or give the shards of one split alone"
            )


def _find_shards(pattern: str) -> tuple[Path, list[str], list[Problem], list[str]]:
    """Return a directory, the shards below it, what cannot be read, and remarks.

    Shards in sub-directories count where there are none above them.
    """
    path, problems, notes = local_path(pattern), list[Problem](), list[str]()
    if path.is_dir():
        root, listing = path, list_files(path)
        every = listing.with_suffix([".tar"])
        names = [name for name in every if "/" not in name]
        names = names or rename_by_links(listing, every, file_names=True)
        left = [suffix_of(name) for name in listing.files if name not in {*names}]
        problems, notes = listing.problems, [*listing.notes(), *unread_note(left)]
    else:
        found = [str(path)] if path.exists() else sorted(glob.glob(str(path)))
        root = Path(os.path.commonpath([os.path.dirname(name) or "." for name in found] or ["."]))
        names = [Path(os.path.relpath(name, root)).as_posix() for name in found]
    if not names:
        what = f"{pattern} matches no file" if glob.has_magic(pattern) else missing(pattern)
        raise DataError(f"{what}; give a tar shard or a pattern such as 'x/*.tar'")
    return root, names, problems, notes


def _index_shard(path: Path, findings: _Findings) -> list[_Row]:
    """Return the rows of a shard, reading only headers, captions and labels."""
    groups: dict[str, _Group] = {}
    check_regular(path, DataError)
    end, size = 0, path.stat().st_size
    damage = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + member.size
                if end <= size or not member.isfile():
                    _add_member(groups, path, archive, member, findings)
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        damage = " ".join(str(error).split())
    # A complete archive ends with two empty blocks; a cut may also fall between two members.
    if damage is None and size < end + 2 * tarfile.BLOCKSIZE:
        damage = "its end is missing"
    if damage is not None:
        if groups:
            groups.popitem()  # the last row may lack members
        what = f"damaged after {len(groups):,} rows" if end else "not a tar file"
        findings.problems.append(Problem(path.name, f"{what}: {damage}"))
    return [row for group in groups.values() for row in _rows_of(group, findings)]


def _add_member(
    groups: dict[str, _Group],
    path: Path,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    findings: _Findings,
) -> None:
    """Add one member of a shard to its group."""
    directory, _, file_name = member.name.rpartition("/")
    stem, _, suffixes = file_name.partition(".")
    if not stem or member.isdir():  # a hidden file
        return
    key = f"{directory}/{stem}".strip("/")
    middle, _, suffix = suffixes.rpartition(".")
    suffix = suffix.lower()
    inside = "/".join(part for part in directory.split("/") if part not in ("", "."))
    group = groups.setdefault(composed(key), _Group(f"{path.name}:{key}", inside))
    if not member.isfile() or member.issparse():  # a link or a device; a file with holes
        findings.unread["that are links or devices"] += 1
    elif f".{suffix}" in IMAGE_SUFFIXES:
        if middle in group.images:
            findings.several.append(group.name)
        group.images[middle] = suffix, Member(str(path), member.offset_data, member.size)
    elif suffix in _SMALL:
        place = f"{path.name}:{member.name}"
        if member.size > MAX_TEXT_BYTES:
            raise DataError(f"{place} has {member.size:,} bytes; a text has at most 64 MiB")
        content = archive.extractfile(member)
        assert content is not None
        group.texts.append((middle, _parse(suffix, content.read(), place)))
    else:
        findings.unread[f".{suffix}" if suffix else ""] += 1


def _rows_of(group: _Group, findings: _Findings) -> Iterator[_Row]:
    """Yield the rows of a group: one, or one for each image if none has the name alone."""
    images = group.images
    if not images:
        findings.bare.append(group.name)
    if "" in images:
        findings.unread.update(f".{m}.{suffix}" for m, (suffix, _) in images.items() if m)
        images = {"": images[""]}
    for middle, (_, image) in images.items():
        columns: dict[str, Any] = {}
        for part, values in sorted(group.texts, key=lambda text: text[0] == middle):
            if part in ("", middle):
                columns |= values
            elif part not in images:
                columns |= {f"{part}.{name}": value for name, value in values.items()}
        name = f"{group.name}.{middle}" if middle else group.name
        if middle:
            findings.dotted.append(name)
        path = f"{group.directory}/{name.replace('/', ':')}".lstrip("/")
        if path in findings.paths:  # of a shard of the same name in another directory
            path += f"@{image.shard.replace('/', ':')}"
        findings.paths.add(path)
        yield _Row(name, path, image, columns)


def _parse(suffix: str, content: bytes, place: str) -> dict[str, Any]:
    """Return the columns in a text, class or JSON member."""
    try:
        text = content.decode("utf-8-sig")
        if suffix == "json":
            value = parse_json(text, place, DataError)
            return value if isinstance(value, dict) else {}
        if suffix in _CAPTIONS:
            return {suffix: lines_of(text)}
        return {suffix: int(text) if suffix == "cls" else text.strip()}
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{place} cannot be read ({reason}); write the shard again") from error


def _as_rows(rows: list[_Row], division: Division | None, where: str, config: DataConfig) -> Rows:
    """Return the rows of one split with their label and caption columns.

    Args:
        rows: All rows; classes are numbered over all of them.
        division: Which of them belong to which split by their paths. None: all to one.
        where: The shards, for messages.
        config: Names the split and the columns.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row.columns))
    chosen = rows
    if division is not None and division.splits:
        paths = {*division.choose(config.split, where)[0]}
        chosen = [row for row in rows if row.path in paths]
    names = [row.name for row in chosen]
    captions, labels, class_names, notes = None, None, None, []
    if name := choose_column(config.caption_column, CAPTION_COLUMNS, columns, where):
        captions = [as_captions([row.columns.get(name)], row.name) for row in chosen]
    name = choose_column(config.label_column, LABEL_COLUMNS, columns, where)
    if name and config.labels is not False:
        class_names = class_names_of(row.columns.get(name) for row in rows)
        values = [row.columns.get(name) for row in chosen]
        labels, notes = number_labels(values, class_names, where, names)
    elif division is not None and division.in_directories and config.labels is not False:
        labels, class_names, notes = directory_labels(division, [row.path for row in chosen])
    images = [row.image for row in chosen]
    return Rows(images, names, labels, captions, class_names, notes=notes)
