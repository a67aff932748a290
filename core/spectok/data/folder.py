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

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from spectok.data.rows import Captions, Problem, Rows
from spectok.data.splits import KNOWN_SPLITS, SPLIT_NAMES, choose_split
from spectok.errors import DataError

_METADATA = ("metadata.jsonl", "metadata.csv")
_Entry = dict[str, Any]


@dataclass(frozen=True)
class _Listing:
    """The image files and metadata files below a directory, as paths relative to it."""

    root: Path
    images: list[str]
    metadata: list[str]

    def below(self, directory: str) -> list[str]:
        """Return the images in or below one sub-directory (``""`` for all)."""
        return [name for name in self.images if not directory or name.startswith(f"{directory}/")]


def read_folder(root: Path, config: DataConfig) -> Rows:
    """List one split of a directory of images.

    Args:
        root: The directory; sub-directories called ``train``, ``test`` … are splits.
        config: Names the split and the metadata columns.

    Raises:
        DataError: If the directory is missing or holds no image, or its metadata cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a directory; give a directory of images")
    listing = _list_files(root)
    directory, owns_split = _split_directory(listing, config.split)
    names = listing.below(directory)
    if not names:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{root / directory} holds no image; put some there ({suffixes})")
    if listing.metadata:
        return _with_metadata(listing, directory, names, owns_split, config)
    captions = _sidecar_captions(root, names)
    labels, class_names, notes = _directory_labels(listing, directory, names)
    paths = [str(root / name) for name in names]
    return Rows(paths, names, labels, captions, class_names, notes=notes, owns_split=owns_split)


def _list_files(root: Path) -> _Listing:
    """Return the files below a directory, except hidden ones."""
    images, metadata = [], []
    for parent, directories, files in os.walk(root, followlinks=True):
        directories[:] = sorted(d for d in directories if not d.startswith("."))
        base = Path(parent).relative_to(root)
        for name in sorted(f for f in files if not f.startswith(".")):
            if name in _METADATA:
                metadata.append((base / name).as_posix())
            elif Path(name).suffix.lower() in IMAGE_SUFFIXES:
                images.append((base / name).as_posix())
    return _Listing(root, sorted(images), metadata)


def _split_directory(listing: _Listing, split: str) -> tuple[str, bool]:
    """Return the sub-directory of a split, and whether it is the whole split."""
    splits = [name for name in _top_directories(listing) if name in KNOWN_SPLITS]
    if not any(name in splits for name in SPLIT_NAMES["train"]):
        return "", False
    return choose_split(splits, split, str(listing.root))


def _top_directories(listing: _Listing) -> list[str]:
    return sorted({name.split("/")[0] for name in listing.images if "/" in name})


def _directory_labels(
    listing: _Listing, directory: str, names: list[str]
) -> tuple[np.ndarray | None, list[str] | None, list[str]]:
    """Return labels, class names and notes from the directories that directly hold the images.

    Classes are numbered over all splits, so that a split that lacks a class agrees with the others.
    """
    depth = 2 if directory else 1
    everywhere = listing.images if directory else names
    class_names = sorted({Path(n).parent.name for n in everywhere if n.count("/") >= depth})
    loose = [name for name in names if name.count("/") < depth]
    if len(class_names) < 2:
        return None, None, []
    if loose:
        note = f"no labels: {len(loose):,} images lie outside class directories, such as {loose[0]}"
        return None, None, [note]
    labels = [Path(name).parent.name for name in names]
    return number_labels(labels, class_names, str(listing.root)), class_names, []


def _sidecar_captions(root: Path, names: list[str]) -> list[Captions] | None:
    """Return the lines of ``a.txt`` beside each ``a.png``; None if no such file exists."""
    captions = []
    for name in names:
        path = (root / name).with_suffix(".txt")
        captions.append(as_captions([_read_text(path).splitlines()] if path.is_file() else []))
    return captions if any(captions) else None


def _with_metadata(
    listing: _Listing, directory: str, names: list[str], owns_split: bool, config: DataConfig
) -> Rows:
    """Return the images listed in metadata files, in the order of their file names.

    Several entries with the same file name are several captions of one image.
    """
    where = str(listing.root / listing.metadata[0])
    everywhere = _entries_by_image(listing)
    columns = list(dict.fromkeys(key for group in everywhere.values() for e in group for key in e))
    caption_column = choose_column(config.caption_column, CAPTION_COLUMNS, columns, where)
    label_column = choose_column(config.label_column, LABEL_COLUMNS, columns, where)
    inside = f"{directory}/" if directory else ""
    listed = sorted(name for name in everywhere if name.startswith(inside))
    present = set(names)
    problems = [
        Problem(n, "listed in the metadata, but missing") for n in listed if n not in present
    ]
    kept = [name for name in listed if name in present]
    labels, class_names, notes = _directory_labels(listing, directory, kept)
    if label_column:
        values = {n: group[0].get(label_column) for n, group in everywhere.items()}
        class_names = class_names_of(values.values())
        labels = number_labels([values[name] for name in kept], class_names, where, kept)
    captions = None
    if caption_column:
        captions = [as_captions(e.get(caption_column) for e in everywhere[n]) for n in kept]
    notes += _unlisted(sorted(present - set(listed)), where)
    paths = [str(listing.root / name) for name in kept]
    return Rows(
        paths,
        kept,
        labels,
        captions,
        class_names,
        problems=problems,
        notes=notes,
        owns_split=owns_split,
    )


def _entries_by_image(listing: _Listing) -> dict[str, list[_Entry]]:
    """Return the metadata entries of each image, by its path relative to the root."""
    grouped: dict[str, list[_Entry]] = {}
    for metadata in listing.metadata:
        base = Path(metadata).parent
        for entry in _read_metadata(listing.root / metadata):
            name = os.path.normpath(base / entry["file_name"])
            grouped.setdefault(Path(name).as_posix(), []).append(entry)
    return grouped


def _read_metadata(path: Path) -> list[_Entry]:
    """Return the entries of ``metadata.jsonl`` or ``metadata.csv``, each with a ``file_name``."""
    text = _read_text(path)
    if path.suffix == ".csv":
        entries: list[Any] = list(csv.DictReader(io.StringIO(text)))
    else:
        lines = text.split("\n")  # splitlines() would also split at U+2028 inside a caption
        entries = [_parse_line(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DataError(f"{path}: entry {number} has no file_name; give each entry one")
    return entries


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number} is not JSON ({error.msg}); write one object per line"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); save it again") from error


def _unlisted(names: list[str], where: str) -> list[str]:
    if not names:
        return []
    some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return [f"{len(names):,} images are left out because {where} does not list them: {some}"]
