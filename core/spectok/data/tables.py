"""Parquet files and hub names, read by the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from spectok.data.rows import Rows
from spectok.data.splits import KNOWN_SPLITS, choose_split
from spectok.errors import DataError

if TYPE_CHECKING:
    import datasets

    _Tables = dict[str, datasets.Dataset]


class EncodedImages(Sequence[Any]):
    """The image column of a table, not decoded."""

    def __init__(self, table: datasets.Dataset, column: str):
        import datasets as hf

        self.table = table.select_columns([column]).cast_column(column, hf.Image(decode=False))
        self.column = column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        return self.table[index][self.column]


def read_parquet(path: Path, config: DataConfig) -> Rows:
    """Read one split of a parquet file or of a directory of parquet files.

    Args:
        path: A file, or a directory with ``train.parquet`` and ``test.parquet``, or with shards
            such as ``train-00000-of-00004.parquet``, there or in ``data/``.
        config: Gives the split and the column names.

    Raises:
        DataError: If there is no such split, or a file is not readable.
    """
    files = _parquet_files(path)
    split, owns_split = choose_split(files, config.split, str(path))
    try:
        tables = _load("parquet", data_files=files)
    except Exception as error:  # pyarrow and datasets wrap each other's errors in several ways
        raise DataError(f"{path} is not readable as parquet ({_root_cause(error)})") from error
    return _as_rows(tables, split, owns_split, str(path), config)


def read_hub(name: str, config: DataConfig, subset: str | None = None) -> Rows:
    """Read one split of a data set on the Hugging Face Hub, downloading it once.

    Args:
        name: The hub id, ``owner/name``.
        config: Gives the split (a real name of the data set's, or one of our three) and columns.
        subset: Which configuration of the data set.

    Raises:
        DataError: If it cannot be reached, or has no such split.
    """
    try:
        tables = _load(name, subset)
    except Exception as error:  # network, authentication and builder errors share no base
        raise DataError(
            f"cannot load {name!r} from the Hugging Face Hub ({_root_cause(error)}); "
            "offline, set data.path to a directory of images or of parquet files"
        ) from error
    split, owns_split = choose_split(tables, config.split, name)
    return _as_rows(tables, split, owns_split, name, config)


def _load(*arguments: Any, **options: Any) -> _Tables:
    """Call ``load_dataset`` for all splits."""
    import datasets as hf

    tables = hf.load_dataset(*arguments, **options)
    assert isinstance(tables, hf.DatasetDict)
    return {str(name): table for name, table in tables.items()}


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Return the parquet files of each split; files not named after a split are ``train``."""
    files = (
        [path]
        if path.is_file()
        else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    )
    if not files:
        raise DataError(
            f"{path} holds no parquet file; give one, or a directory with train.parquet"
        )
    found: dict[str, list[str]] = {}
    for file in files:
        prefix = file.stem.replace("_", "-").split("-")[0].lower()
        found.setdefault(prefix if prefix in KNOWN_SPLITS else "train", []).append(str(file))
    return found


def _as_rows(
    tables: _Tables,
    split: str,
    owns_split: bool,
    where: str,
    config: DataConfig,
) -> Rows:
    """Return one table as rows."""
    table = tables[split]
    image_column = _image_column(table, config, where)
    others = [name for name in table.column_names if name != image_column]
    captions, labels, class_names, num_classes = None, None, None, None
    if name := choose_column(config.caption_column, CAPTION_COLUMNS, others, where):
        captions = [as_captions([value]) for value in table[name]]
    if name := _label_column(table, config, others, where):
        class_names, num_classes = _classes(tables, name)
        texts = None if _is_class_label(table, name) else class_names
        labels = number_labels(list(table[name]), texts, where)
    images = EncodedImages(table, image_column)
    return Rows(images, None, labels, captions, class_names, num_classes, owns_split=owns_split)


def _image_column(table: datasets.Dataset, config: DataConfig, where: str) -> str:
    """Return the column with images: the given one, the one of type Image, or the one named so."""
    import datasets as hf

    typed = [name for name, kind in table.features.items() if isinstance(kind, hf.Image)]
    column = choose_column(config.image_column, [*typed, *IMAGE_COLUMNS], table.column_names, where)
    if column is None:
        raise DataError(
            f"{where} has no column of images among {', '.join(table.column_names)}; "
            "name it with data.image_column"
        )
    return column


def _label_column(
    table: datasets.Dataset, config: DataConfig, others: list[str], where: str
) -> str | None:
    """Return the column with labels: the given one, a ClassLabel one, or one named so."""
    typed = [name for name in others if _is_class_label(table, name)]
    plain = [name for name in LABEL_COLUMNS if name in others and _is_plain(table, name)]
    return choose_column(config.label_column, [*typed, *plain], others, where)


def _is_class_label(table: datasets.Dataset, column: str) -> bool:
    import datasets as hf

    return isinstance(table.features[column], hf.ClassLabel)


def _is_plain(table: datasets.Dataset, column: str) -> bool:
    """Return whether a column holds single integers or texts; scores and lists are no classes."""
    return getattr(table.features[column], "dtype", "").startswith(("int", "uint", "string"))


def _classes(tables: _Tables, column: str) -> tuple[list[str] | None, int]:
    """Return class names, if any, and the number of classes, the same for every split."""
    feature = next(iter(tables.values())).features[column]
    if names := getattr(feature, "names", None):
        return list(names), len(names)
    values = {
        v for table in tables.values() if column in table.column_names for v in table.unique(column)
    }
    names = class_names_of(values)
    return names, len(names or []) or max((v for v in values if isinstance(v, int)), default=0) + 1


def _root_cause(error: BaseException) -> str:
    """Return the first error of a chain, on one line and cut to a readable length."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "…"
