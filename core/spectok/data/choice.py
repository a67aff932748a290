"""What ``--data`` stands for."""

from __future__ import annotations

from pathlib import Path

from spectok.data.data_config import kind_of_path
from spectok.errors import UnknownNameError
from spectok.plugins import registry
from spectok.recipes.recipe import Override


def data_override(choice: str) -> Override:
    """Return the override that ``--data`` stands for: a registered data set, or one's own data."""
    if choice in registry.list_registered("dataset") and not Path(choice).exists():
        return "data", {"name": choice}
    if "/" not in choice and not Path(choice).expanduser().exists():
        note = "A directory of images, a parquet file, tar shards or a hub id also work"
        raise UnknownNameError("dataset", choice, registry.list_registered("dataset"), note)
    return "data", {"name": kind_of_path(choice), "path": choice}
