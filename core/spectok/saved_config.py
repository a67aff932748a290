"""The ``config.json`` of saved models: reading it, and what it must say."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

from spectok.errors import CheckpointError
from spectok.reading import read_json
from spectok.saving import was_cut_short

CONFIG_NAME = "config.json"
"""As in diffusers and transformers."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's ``config.json``.

    Raises:
        CheckpointError: If it is missing or is not JSON.
    """
    path = folder / CONFIG_NAME
    if not os.path.lexists(path):
        if was_cut_short(folder):
            raise CheckpointError(
                f"{folder} has no {CONFIG_NAME}: a save into it was cut short; save it again"
            )
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}; is it a saved model?")
    config = read_json(path, CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def saved_class(config: dict[str, Any], place: str) -> str:
    """Return the name of the class that a config names.

    Raises:
        CheckpointError: If it names none.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise CheckpointError(f"{place} holds a model of no known class (_class_name); save again")
    return name


def check_config(config: dict[str, Any], cls: type, place: str) -> None:
    """Refuse a config that another class saved, or that has options this class does not take.

    Raises:
        CheckpointError: Names both classes, or the options.
    """
    found = saved_class(config, place)
    if found != cls.__name__:
        raise CheckpointError(f"{place} holds a {found[:80]}, not {cls.__name__}")
    options = inspect.signature(cls).parameters
    unknown = sorted(key for key in config if not key.startswith("_") and key not in options)
    if unknown:
        raise CheckpointError(
            f"{place} has options in {CONFIG_NAME} that {cls.__name__} does not take: "
            f"{', '.join(unknown)}; it may have been saved by another version of spectok"
        )


def forget_origin(config: Path) -> None:
    """Remove from a config the place that its model was loaded from, which diffusers records."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
