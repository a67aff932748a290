"""Resolve the argument of ``--data``."""

from __future__ import annotations

from spectok.data.data_config import kind_of_path
from spectok.data.listing import local_path
from spectok.data.own import check_exists
from spectok.errors import UnknownNameError
from spectok.plugins import registry
from spectok.recipes.recipe import Override


def data_override(choice: str) -> Override:
    """Return the override for ``--data``: a registered data set, or one's own data.

    Raises:
        DataError: If a local path does not exist.
        UnknownNameError: If it is neither a data set nor a path.
    """
    if choice in registry.names("dataset") and not local_path(choice).exists():
        return "data", {"name": choice}
    if "/" not in choice and not local_path(choice).exists():
        note = "A directory of images, a parquet file, tar shards or a hub id also work"
        raise UnknownNameError("dataset", choice, registry.names("dataset"), note)
    kind = kind_of_path(choice)
    check_exists(choice, kind)
    return "data", {"name": kind, "path": choice}
