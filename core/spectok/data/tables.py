"""Parquet files and hub names, read by the ``datasets`` library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectok.data.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    as_captions,
    choose_column,
    class_names_of,
    number_labels,
)
from spectok.data.data_config import DataConfig
from spectok.data.decode import IMAGE_SUFFIXES
from spectok.data.encoded_images import EncodedImages, root_cause
from spectok.data.listing import Listing, list_files, some, suffix_of, unread_note
from spectok.data.metadata import METADATA
from spectok.data.rows import Rows
from spectok.data.split_column import SplitColumn, read_split_column
from spectok.data.split_links import rename_by_links
from spectok.data.split_names import Division, choose_split
from spectok.data.split_words import parse_split_name
from spectok.errors import DataError, one_line
from spectok.hub import ask
from spectok.reading import check_regular

if TYPE_CHECKING:
    import datasets

    _Tables = dict[str, datasets.Dataset]


def read_parquet(path: Path, config: DataConfig) -> Rows:
    """Read one split of a parquet file or of a directory of parquet files.

    Args:
        path: A file, or a directory with ``train.parquet`` and ``test.parquet``, with shards
            such as ``train-00000-of-00004.parquet``, or with directories of them.
        config: Names the split and the columns.

    Raises:
        DataError: If the split does not exist, or a file cannot be read.
    """
    root, files, listing, notes = _parquet_files(path)
    division = Division(files, file_names=True)
    splits = division.splits or {"train": division.outside}
    if division.splits:
        choose_split(splits, config.split, str(path))  # refused before anything is loaded
    tables = {name: _load_parquet(path, root, found) for name, found in splits.items()}
    places = {
        name: list(dict.fromkeys([*((root / file).parent for file in found), root]))
        for name, found in splits.items()
    }
    whole = dict(tables)
    if division.splits:
        for name, table in tables.items():
            _check_column(table, name, str(path))
        numbers, remarks = None, []
    else:
        tables, numbers, remarks = _divide(tables["train"], str(path))
    split, owns_split = choose_split(tables, config.split, str(path))
    places_of_split = places[split if division.splits else "train"]
    rows = _as_rows(tables, split, owns_split, str(path), config, places_of_split)
    rows = replace(rows, names=numbers and [f"row {row}" for row in numbers[split]])
    if listing is not None:
        rows.problems.extend(listing.problems)
        remarks += _unread(listing, files, whole, places, rows.images)
    rows.notes.extend([*division.notes(), *notes, *remarks])
    return rows


def read_hub(name: str, config: DataConfig, subset: str | None = None) -> Rows:
    """Read one split of a data set on the Hugging Face Hub, downloading it once.

    Args:
        name: The hub id, ``owner/name``.
        config: Names the split (by the data set's own name or one of our three) and the columns.
        subset: The configuration of the data set.

    Raises:
        DataError: If it cannot be loaded, or does not have the split.
    """
    ask(name, "data set")
    try:
        tables = _load(name, subset)
    except Exception as error:  # network, authentication and builder errors share no base
        raise DataError(
            f"cannot load {name!r} from the Hugging Face Hub ({root_cause(error)}); "
            "offline, give a directory of images or parquet files (--data; data.path in a recipe)"
        ) from error
    many = len(tables) > 1
    numbers, remarks = None, []
    if many:
        tables = {s: _without_others(table, s, name, remarks) for s, table in tables.items()}
    else:
        (table,) = tables.values()
        divided, numbers, remarks = _divide(table, name)
        tables = divided if numbers else tables
    split, owns_split = choose_split(tables, config.split, name)
    rows = _as_rows(tables, split, owns_split, name, config)
    rows = replace(rows, names=numbers and [f"row {row}" for row in numbers[split]])
    rows.notes.extend(remarks)
    if split != config.split and many:
        others = some(sorted(tables.keys() - {split}))
        rows.notes.append(f"split {config.split} is read from {split}; there are also {others}")
    return rows


def _split_column(table: datasets.Dataset, where: str) -> tuple[SplitColumn | None, list[str]]:
    """Return the column that says which split each row is in, if there is one, and remarks."""

    def values_of(name: str) -> list[Any]:
        values = _column(table, name, where)
        if names := getattr(table.features[name], "names", None):
            return [names[v] if isinstance(v, int) and v >= 0 else v for v in values]
        return values

    plain = [name for name in table.column_names if _is_plain(table, name)]
    return read_split_column(plain, values_of)


def _divide(
    table: datasets.Dataset, where: str
) -> tuple[_Tables, dict[str, list[int]] | None, list[str]]:
    """Divide a table by its column of splits; return the rows of each part too, and remarks."""
    column, notes = _split_column(table, where)
    if column is None:
        return {"train": table}, None, notes
    rows = column.rows()
    parts = {split: table.select(found) for split, found in rows.items()}
    return parts, rows, notes + column.notes()


def _check_column(table: datasets.Dataset, split: str, where: str) -> None:
    """Refuse a table in which a column says another split than the name of its file."""
    column, _ = _split_column(table, where)
    if column is not None:
        column.check([split] * len(table), lambda row: f"row {row} of {split}", where)


def _without_others(
    table: datasets.Dataset, split: str, where: str, notes: list[str]
) -> datasets.Dataset:
    """Return a table without the rows of which a column says that they are of another split."""
    column, _ = _split_column(table, where)
    parsed = parse_split_name(split, is_file=True)
    if column is None or parsed is None:
        return table
    kept = [row for row, said in enumerate(column.splits) if said in (None, parsed.split)]
    if len(kept) == len(table):
        return table
    notes.append(
        f"{len(table) - len(kept):,} rows of split {split} are left out, because column "
        f"{column.name} says that they are of another"
    )
    return table.select(kept)


def _load(*arguments: Any, **options: Any) -> _Tables:
    """Call ``load_dataset`` for all splits."""
    import datasets as hf

    verbosity = hf.logging.get_verbosity()
    hf.logging.set_verbosity(hf.logging.CRITICAL)  # the error that follows says the same
    try:
        tables = hf.load_dataset(*arguments, **options)
    finally:
        hf.logging.set_verbosity(verbosity)
    assert isinstance(tables, hf.DatasetDict)
    return {str(name): table for name, table in tables.items()}


def _parquet_files(path: Path) -> tuple[Path, list[str], Listing | None, list[str]]:
    """Return a directory, the parquet files to read, the files below it, and remarks.

    Files in sub-directories other than ``data`` count where there are none above them.
    """
    if not path.is_dir():
        return path.parent, [path.name], None, []
    listing = list_files(path)
    found = listing.with_suffix([".parquet"])
    files = [name for name in found if name.rpartition("/")[2] not in METADATA] or found
    files = rename_by_links(listing, files, file_names=True)
    if not files:
        raise DataError(
            f"{path} holds no parquet file; give one, or a directory with train.parquet"
        )
    upper = [name for name in files if os.path.dirname(name) in ("", "data")]
    notes = listing.notes()
    if upper and len(upper) < len(files):
        lower = some([name for name in files if name not in upper])
        notes.append(f"parquet files in further directories are not read: {lower}")
    return path, upper or files, listing, notes


def _unread(
    listing: Listing,
    files: list[str],
    tables: _Tables,
    places: dict[str, list[Path]],
    images: Any,
) -> list[str]:
    """Return a remark on files beside the tables, but for the images that rows point to."""
    left = [name for name in listing.files if name not in {*files}]
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in left):
        used: set[str] = set()
        for split, table in tables.items():
            if images.column in table.column_names:
                used |= EncodedImages(table, images.column, places[split]).files()
        left = [name for name in left if os.path.abspath(listing.root / name) not in used]
    return unread_note(map(suffix_of, left))


def _load_parquet(path: Path, root: Path, files: list[str]) -> datasets.Dataset:
    """Return the table in the parquet files of one split."""
    for file in files:
        check_regular(root / file, DataError)
    try:
        return _load("parquet", data_files=[str(root / file) for file in files])["train"]
    except Exception as error:  # pyarrow and datasets wrap each other's errors in several ways
        where = root / files[0] if len(files) == 1 else path
        raise DataError(f"{where} is not readable as parquet ({root_cause(error)})") from error


def _as_rows(
    tables: _Tables,
    split: str,
    owns_split: bool,
    where: str,
    config: DataConfig,
    places: Sequence[Path] = (),
) -> Rows:
    """Return one table as rows; relative paths of images are looked up in ``places``."""
    table = tables[split]
    image_column = _image_column(table, config, where)
    others = [name for name in table.column_names if name != image_column]
    captions, labels, class_names, num_classes, notes = None, None, None, None, []
    if name := choose_column(config.caption_column, CAPTION_COLUMNS, others, where):
        values = _column(table, name, where)
        captions = [as_captions([v], f"{where}, row {row}") for row, v in enumerate(values)]
    name = None if config.labels is False else _label_column(tables, split, config, others, where)
    if name and name not in others:
        notes.append(f"no labels: split {split} has no column {name}")
    elif name:
        class_names, num_classes = _classes(tables, name, where)
        texts = None if _is_class_label(table, name) else class_names
        labels, notes = number_labels(_column(table, name, where), texts, where)
        _check_range(labels, num_classes, name, where)
    images = EncodedImages(table, image_column, places)
    return Rows(
        images, None, labels, captions, class_names, num_classes, notes=notes, owns_split=owns_split
    )


def _check_range(labels: np.ndarray | None, num_classes: int, column: str, where: str) -> None:
    """Refuse labels beyond the names of a ``ClassLabel``."""
    if labels is not None and labels.max(initial=-1) >= num_classes:
        row = int(labels.argmax())
        raise DataError(
            f"{where}: label {labels[row]} of row {row} has no name; column {column!r} "
            f"names {num_classes} classes"
        )


def _image_column(table: datasets.Dataset, config: DataConfig, where: str) -> str:
    """Return the column with images: the given one, one of type Image, or one with a usual name."""
    import datasets as hf

    typed = [name for name, kind in table.features.items() if isinstance(kind, hf.Image)]
    column = choose_column(config.image_column, [*typed, *IMAGE_COLUMNS], table.column_names, where)
    if column is None:
        raise DataError(
            f"{where} has no column of images among {', '.join(table.column_names)}; "
            "name it with data.image_column"
        )
    _check_images(table, column, where)
    return column


def _check_images(table: datasets.Dataset, column: str, where: str) -> None:
    """Refuse a column that cannot hold one image per row."""
    import datasets as hf

    kind = table.features[column]
    if isinstance(kind, hf.Image) or (isinstance(kind, dict) and kind.keys() & {"bytes", "path"}):
        return
    inner = kind
    while isinstance(inner, hf.List | hf.LargeList):
        inner = inner.feature
    dtype = getattr(inner, "dtype", "")
    if inner is kind and dtype in ("string", "large_string", "binary", "large_binary"):
        return
    if inner is not kind and dtype.startswith(("int", "uint")):  # pixels
        return
    held = "lists" if inner is not kind else one_line(str(kind))[:80]
    raise DataError(
        f"{where}: column {column!r} holds {held}, not one image per row; give encoded images, "
        "paths or the type Image, or name another column with data.image_column"
    )


def _label_column(
    tables: _Tables, split: str, config: DataConfig, others: list[str], where: str
) -> str | None:
    """Return the column with labels: the given one, a ClassLabel, or one with a usual name.

    A column that only the other splits have is returned too.
    """
    table, given = tables[split], config.label_column
    elsewhere = {name for other in tables.values() for name in other.column_names}
    if given is not None and given not in others and given in elsewhere:
        return given
    typed = [name for name in others if _is_class_label(table, name)]
    plain = [name for name in LABEL_COLUMNS if name in others and _is_plain(table, name)]
    return choose_column(given, [*typed, *plain], others, where)


def _is_class_label(table: datasets.Dataset, column: str) -> bool:
    import datasets as hf

    return isinstance(table.features[column], hf.ClassLabel)


def _is_plain(table: datasets.Dataset, column: str) -> bool:
    """Return whether a column holds single integers or texts; scores and lists are not classes."""
    return getattr(table.features[column], "dtype", "").startswith(("int", "uint", "string"))


def _classes(tables: _Tables, column: str, where: str) -> tuple[list[str] | None, int]:
    """Return class names, if any, and the number of classes, the same for every split."""
    having = [table for table in tables.values() if column in table.column_names]
    feature = having[0].features[column]
    if names := getattr(feature, "names", None):
        return list(names), len(names)
    values = [v for table in having for v in _column(table, column, where)]
    names = class_names_of(values)
    return names, len(names or []) or max((v for v in values if isinstance(v, int)), default=0) + 1


def _column(table: datasets.Dataset, column: str, where: str) -> list[Any]:
    """Return all values of a column."""
    try:
        return list(table[column])
    except Exception as error:  # a damaged text, or whatever pyarrow raises
        reason = root_cause(error)
        raise DataError(f"{where}: column {column!r} cannot be read ({reason})") from error
