"""One's own images: a folder, parquet files, tar shards or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectok.data.data_config import kind_of_path
from spectok.data.listing import local_path, walk
from spectok.data.sources import DatasetCard, DatasetSource
from spectok.errors import ConfigError, DataError
from spectok.places import missing

if TYPE_CHECKING:
    from spectok.data.data_config import DataConfig
    from spectok.data.rows import Rows

_SUMMARIES = {
    "folder": "a directory of images, with class sub-directories, metadata.jsonl or text files",
    "parquet": "a parquet file, or a directory with train.parquet and test.parquet",
    "webdataset": "WebDataset tar shards, such as shards/*.tar, read in place",
    "hub": "a data set on the Hugging Face Hub, such as owner/name",
}


@dataclass(frozen=True)
class OwnData(DatasetSource):
    """Images at ``data.path``, whatever they show.

    Args:
        kind: ``folder``, ``parquet``, ``webdataset`` or ``hub``.
    """

    kind: str

    def describe(self) -> DatasetCard:
        """Return a card; sizes and classes are known only once the images are read."""
        return DatasetCard(_SUMMARIES[self.kind], citation="one's own data; set data.path")

    def load(self, config: DataConfig) -> Rows:
        """Return the images at ``config.path``."""
        if config.path is None:
            raise ConfigError(f"data.name {self.kind!r} needs data.path: {_SUMMARIES[self.kind]}")
        return load_path(config.path, self.kind, config)


def own_data() -> dict[str, DatasetSource]:
    """Return one source per kind of one's own data."""
    return {kind: OwnData(kind) for kind in _SUMMARIES}


def check_exists(path: str, kind: str) -> None:
    """Check that images may be at a local path; patterns and hub ids are not looked at.

    Args:
        path: Local path, pattern, or hub id.
        kind: How it is read.

    Raises:
        DataError: If nothing is there, or neither is a directory for images nor holds a file.
    """
    local = local_path(path)
    if kind in ("folder", "parquet") and not local.exists():
        raise DataError(f"{missing(path)}; give {_SUMMARIES[kind]}")
    if kind == "folder" and not local.is_dir():
        raise DataError(f"{path} is not a directory; give {_SUMMARIES[kind]}")
    if kind == "folder" and next(walk(local), None) is None:
        raise DataError(f"{path} holds no image and no other file; put some there")


def load_path(path: str, kind: str | None, config: DataConfig) -> Rows:
    """Return the images at a path.

    Args:
        path: Local path, pattern, or hub id.
        kind: How to read it. None: decided by what the path holds.
        config: Split and columns.
    """
    kind = kind or kind_of_path(path)
    if kind == "hub":
        from spectok.data.tables import read_hub

        return read_hub(path, config)
    if kind == "webdataset":
        from spectok.data.shards import read_shards

        return read_shards(path, config)
    check_exists(path, kind)
    local = local_path(path)
    if kind == "parquet":
        from spectok.data.tables import read_parquet

        return read_parquet(local, config)
    from spectok.data.folder import read_folder

    return read_folder(local, config)
