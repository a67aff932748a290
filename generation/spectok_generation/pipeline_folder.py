"""The folder of a saved pipeline: which parts it lists, and how each is loaded."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from spectok import ImageTokenizer
from spectok.errors import CheckpointError
from spectok.plugins import registry
from spectok_generation.priors import Prior
from spectok_generation.text.encoder import TEXT_WEIGHTS
from spectok_generation.text.encoder_loading import load_text_encoder

INDEX = "model_index.json"
"""The file that makes a folder a pipeline; see :class:`spectok_generation.TokenPipeline`."""
BASES: dict[str, type] = {"tokenizer": ImageTokenizer, "prior": Prior}


def is_pipeline(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a saved pipeline."""
    return Path(path, INDEX).is_file()


def read_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read which parts a saved pipeline consists of.

    Raises:
        CheckpointError: If the folder holds no pipeline, or the file is damaged.
    """
    if not is_pipeline(path):
        raise CheckpointError(
            f"{path} is not a pipeline (no {INDEX}); make one from a run: spectok export RUN --out "
            f"DIR"
        )
    try:
        return dict(json.loads(Path(path, INDEX).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{Path(path, INDEX)} is not a JSON object ({error}); copy or export the pipeline again"
        ) from error


def load_component(path: str | os.PathLike[str], name: str) -> Any:
    """Load one part of a saved pipeline, in eval mode.

    Args:
        path: Folder of the pipeline.
        name: ``"tokenizer"``, ``"prior"`` or ``"text_encoder"``.

    Raises:
        CheckpointError: If it is missing or damaged, or its class is not installed.
    """
    folder, index, again = Path(path), read_index(path), "copy or export the pipeline again"
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(e, str) for e in entry):
        kind = index.get("_class_name")
        raise CheckpointError(f"{folder / INDEX}, of a {kind}, names no {name}; {again}")
    if not (folder / name).is_dir():
        raise CheckpointError(f"{folder} has no folder {name}; {again}")
    if name in BASES:
        return find_class(name, *entry).from_pretrained(folder / name)
    if not (folder / name / TEXT_WEIGHTS).is_file():
        raise CheckpointError(f"{folder / name} has no {TEXT_WEIGHTS}; {again}")
    return load_text_encoder(str(folder / name))


def find_class(kind: str, module: str, name: str) -> Any:
    """Return the class of a saved tokenizer or prior, registered or importable.

    Raises:
        CheckpointError: If nothing installed provides it.
    """
    registered = registry.list_registered(kind).values()
    named = sorted(
        (cls for cls in registered if cls.__name__ == name), key=lambda c: c.__module__ != module
    )
    if named and named[0].__module__ == module:
        return named[0]
    reason = f"it is not a {kind}"
    try:
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type) and issubclass(found, BASES[kind]):
            return found
    except Exception as error:  # another package may fail to import in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if named:
        return named[0]  # its package has moved it to another module
    raise CheckpointError(
        f"the {kind} {module}.{name} cannot be found ({reason}); install the package that has it"
    )
