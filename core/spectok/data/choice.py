"""Resolve the argument of ``--data``."""

from __future__ import annotations

import os
from typing import Any

from spectok.data.data_config import kind_of_path
from spectok.data.listing import local_path
from spectok.data.own import check_exists
from spectok.errors import UnknownNameError
from spectok.places import is_path, remark_taken
from spectok.plugins import registry
from spectok.recipes.recipe import Override


def data_override(choice: str) -> Override:
    """Return the override for ``--data``: a registered data set, or one's own data.

    A registered name means that data set; ``./name`` or ``name/`` is what lies here.

    Raises:
        UnknownNameError: If it is neither a data set nor a path.
    """
    if choice in registry.names("dataset"):
        remark_taken(choice, "the registered data set")
        return "data", {"name": choice}
    if "/" not in choice and not is_path(choice) and not os.path.exists(local_path(choice)):
        note = "A directory of images, a parquet file, tar shards or a hub id also work"
        raise UnknownNameError("dataset", choice, registry.names("dataset"), note)
    return "data", {"name": kind_of_path(choice), "path": choice}


def check_choice(choice: str) -> None:
    """Check that what ``--data`` was given is there, as far as this machine can tell.

    Raises:
        DataError: If a local path does not exist.
        UnknownNameError: If it is neither a data set nor a path.
    """
    override: Any = data_override(choice)[1]
    if "path" in override:
        check_exists(choice, override["name"])
