"""The folder of a saved pipeline: which parts it lists, and how each is loaded."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from spectok import ImageTokenizer
from spectok.errors import CheckpointError
from spectok.foreign.claims import load_class, saved_by
from spectok.plugins import registry
from spectok.saving import first_line
from spectok_generation.folders import INDEX, read_index
from spectok_generation.priors import Prior
from spectok_generation.text.encoder import TEXT_WEIGHTS
from spectok_generation.text.encoder_loading import load_text_encoder

BASES: dict[str, type] = {"tokenizer": ImageTokenizer, "prior": Prior}


def load_component(path: str | os.PathLike[str], name: str, *, trust: bool = False) -> Any:
    """Load one part of a saved pipeline, in eval mode.

    Args:
        path: Folder of the pipeline.
        name: ``"tokenizer"``, ``"prior"`` or ``"text_encoder"``.
        trust: Whether the folder may name a class that no plugin registers, whose module is then
            imported, and ask for larger networks than its weights suggest.

    Raises:
        CheckpointError: If it is missing or damaged, or its class is not installed.
    """
    folder, index, again = Path(path), read_index(path), "copy or export the pipeline again"
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(e, str) for e in entry):
        kind = str(index.get("_class_name"))[:80]
        raise CheckpointError(f"{folder / INDEX}, of a {kind}, names no {name}; {again}")
    if not os.path.isdir(folder / name):
        raise CheckpointError(f"{folder} has no folder {name}; {again}")
    if name in BASES:
        return find_class(name, *entry, trust=trust).from_pretrained(folder / name, trust=trust)
    if not os.path.isfile(folder / name / TEXT_WEIGHTS):
        raise CheckpointError(f"{folder / name} has no {TEXT_WEIGHTS}; {again}")
    return load_text_encoder(str(folder / name), trust=trust)


def find_class(kind: str, module: str, name: str, *, trust: bool = False) -> Any:
    """Return the class of a saved tokenizer or prior.

    Args:
        kind: ``"tokenizer"`` or ``"prior"``.
        module: Its module.
        name: Its name.
        trust: Whether to import the module if no plugin registers the class.

    Raises:
        CheckpointError: If no plugin registers it; nothing is imported then, unless trusted.
    """
    named = sorted(registry.classes_named(kind, name), key=lambda cls: cls.__module__ != module)
    if not named and kind == "tokenizer" and (foreign := saved_by(name)) is not None:
        named = [load_class(foreign)]
    if named:  # if it is of another module, its package has moved it
        return named[0]
    shown = f"{module}.{name}"[:120]
    if not trust:
        raise CheckpointError(
            f"no installed plugin registers the {kind} {shown}; install the package that does, or, "
            f"if you trust the author of this pipeline, import it with trust=True (--trust)"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # another package may fail to import in any way
        raise CheckpointError(
            f"the {kind} {shown} cannot be found ({first_line(error)}); install the package that "
            f"has it"
        ) from error
    if not isinstance(found, type) or not issubclass(found, BASES[kind]):
        raise CheckpointError(f"{shown} is not a {kind}; install the package that has it")
    return found
