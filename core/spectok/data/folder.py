"""A directory of images, with class sub-directories or captions.

The layouts are those of the ``imagefolder`` builder of the ``datasets`` library, and text files::

    cats/a.png  dogs/b.png                   labels: the sub-directory
    a.png  b.png  metadata.jsonl             captions: {"file_name": "a.png", "text": "a grey cat"}
    a.png  a.txt                             captions: one per line of the text file beside an image
    train/…  test/…                          splits, each in any of the forms above

The files are listed here because that builder silently drops images without a metadata row, and
notices missing files only in the middle of training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
from spectok.data.decode import IMAGE_SUFFIXES
from spectok.data.directory_labels import directory_labels
from spectok.data.listing import Listing, composed, list_files, some, suffix_of, unread_note
from spectok.data.metadata import MAX_BYTES, METADATA, Entry, read_entries
from spectok.data.rows import Captions, Problem, Rows
from spectok.data.split_column import read_split_column
from spectok.data.split_links import rename_by_links
from spectok.data.split_names import Division
from spectok.errors import DataError
from spectok.reading import read_text


def read_folder(root: Path, config: DataConfig) -> Rows:
    """List one split of a directory of images.

    Args:
        root: The directory; sub-directories called ``train``, ``test`` … are splits, in any usual
            spelling and at any depth (see :class:`~spectok.data.split_names.Division`).
        config: Names the split and the metadata columns.

    Raises:
        DataError: If the directory is missing or holds no image, or its metadata cannot be read.
    """
    listing = list_files(root)
    images = listing.with_suffix(IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{root} holds no image{_instead(listing.files)}")
    images = rename_by_links(listing, images)
    others = [name for name in listing.files if suffix_of(name) not in IMAGE_SUFFIXES]
    division = Division(images)
    metadata = [name for name in others if name.rpartition("/")[2] in METADATA]
    entries, remarks = _divided_entries(listing, metadata, division)
    names, owns_split = division.choose(config.split, str(root))
    if metadata:
        where = ", ".join(str(root / name) for name in metadata)
        rows, used = _with_metadata(listing, where, entries, division, names, config), {*metadata}
    else:
        texts = {composed(name): name for name in others if suffix_of(name) == ".txt"}
        captions, used = _sidecar_captions(root, names, texts)
        labels, class_names, notes = None, None, []
        if config.labels is not False:
            labels, class_names, notes = directory_labels(division, names)
        paths = [str(root / name) for name in names]
        rows = Rows(paths, names, labels, captions, class_names, notes=notes)
        used |= _sidecars(images, texts) if captions is not None else set()
    left = [suffix_of(name) for name in others if name not in used]
    found = [
        *division.notes(),
        *remarks,
        *_in_both(root, division),
        *listing.notes(),
        *unread_note(left),
    ]
    problems = [*listing.problems, *rows.problems]
    return replace(rows, problems=problems, notes=[*rows.notes, *found], owns_split=owns_split)


def _instead(others: list[str]) -> str:
    """Return what a directory without images holds, and the remedy."""
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    held = unread_note((suffix_of(name) for name in others), "files in it are")
    return "".join(f" ({note})" for note in held) + f"; put some there ({suffixes})"


def _in_both(root: Path, division: Division) -> list[str]:
    """Return a remark on files that are both in ``train`` and in another split, by links."""
    if len(division.splits) < 2 or "train" not in division.splits:
        return []
    identities: dict[str, dict[tuple[int, int], str]] = {}
    for split, names in division.splits.items():
        identities[split] = {k: name for name in names if (k := _file_identity(root / name))}
    train = identities.pop("train")
    notes = []
    for split, files in sorted(identities.items()):
        both = [f"{files[k]} is {train[k]}" for k in files if k in train]
        if both:
            what = "images are" if len(both) > 1 else "image is"
            notes.append(f"{len(both):,} {what} in {split} and in train, by links: {some(both)}")
    return notes


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # a broken link, which the checks name
        return None
    return found.st_dev, found.st_ino


def _sidecar_captions(
    root: Path, names: list[str], texts: dict[str, str]
) -> tuple[list[Captions] | None, set[str]]:
    """Return the lines of ``a.txt`` beside each ``a.png``, and the files read.

    The captions are None if no such file has any.
    """
    captions, used = [], set()
    for name in names:
        text = texts.get(_sidecar(name))
        lines = lines_of(read_text(root / text, DataError, MAX_BYTES)) if text else []
        captions.append(as_captions(lines, name))
        used |= {text} if text else set()
    return (captions, used) if any(captions) else (None, set())


def _sidecars(images: list[str], texts: dict[str, str]) -> set[str]:
    """Return the text files that stand beside an image of any split."""
    return {texts[path] for path in map(_sidecar, images) if path in texts}


def _sidecar(image: str) -> str:
    """Return the name of the text file beside an image, in the normal form."""
    return composed(f"{os.path.splitext(image)[0]}.txt")


def _divided_entries(
    listing: Listing, metadata: list[str], division: Division
) -> tuple[dict[str, list[Entry]], list[str]]:
    """Return the metadata entries of each image, and remarks; a column of splits divides them."""
    present = {composed(name): name for name in listing.files} | {n: n for n in listing.files}
    everywhere = _entries_by_image(listing.root, metadata, present | listing.renamed)
    names = [name for name, group in everywhere.items() for _ in group]
    entries = [entry for group in everywhere.values() for entry in group]
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    column, notes = read_split_column(columns, lambda key: [entry.get(key) for entry in entries])
    if column is not None:
        division.declare(column, names, ", ".join(metadata))
        notes += column.unknown_note()
    return everywhere, notes


def _with_metadata(
    listing: Listing,
    where: str,
    everywhere: dict[str, list[Entry]],
    division: Division,
    names: list[str],
    config: DataConfig,
) -> Rows:
    """Return the images that the metadata list; they are sorted by name, as without metadata."""
    present = {*listing.files}
    entries = (entry for group in everywhere.values() for entry in group)
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    caption_column = choose_column(config.caption_column, CAPTION_COLUMNS, columns, where)
    label_column = choose_column(config.label_column, LABEL_COLUMNS, columns, where)
    wanted = division.place(names[0])[0]
    inside = set(names)
    unread = "listed in the metadata, but {}"
    problems = [
        Problem(name, unread.format("not read" if name in present else "missing"))
        for name in sorted(everywhere.keys() - inside)
        if division.place(name)[0] == wanted
    ]
    kept = [name for name in names if name in everywhere]
    labels, class_names, notes = None, None, []
    if config.labels is not False:
        if label_column:
            values = {n: group[0].get(label_column) for n, group in everywhere.items()}
            class_names = class_names_of(values.values())
            labels, notes = number_labels([values[n] for n in kept], class_names, where, kept)
        elif kept:
            labels, class_names, notes = directory_labels(division, kept)
    captions = None
    if caption_column:
        captions = [as_captions([e.get(caption_column) for e in everywhere[n]], n) for n in kept]
    unlisted = sorted(inside - everywhere.keys())
    if unlisted:
        note = f"{len(unlisted):,} images are left out because {where} does not list them"
        notes.append(f"{note}: {some(unlisted, 5)}")
    paths = [str(listing.root / name) for name in kept]
    return Rows(paths, kept, labels, captions, class_names, problems=problems, notes=notes)


def _entries_by_image(
    root: Path, metadata: Sequence[str], present: dict[str, str]
) -> dict[str, list[Entry]]:
    """Return the metadata entries of each image, by its path relative to the root.

    Args:
        root: The directory of images.
        metadata: The metadata files.
        present: The real name of each file that is there, by itself and by its normal form: a name
            with an accent may be spelt in two ways, and file systems differ in which they keep.
    """
    grouped: dict[str, list[Entry]] = {}
    for file in metadata:
        base = Path(file).parent
        for entry in read_entries(root / file):
            name = Path(os.path.normpath(base / entry["file_name"])).as_posix()
            real = present.get(name) or present.get(composed(name)) or name
            grouped.setdefault(real, []).append(entry)
    return grouped
