"""Find the folder of a trained prior, and tell what it holds, before torch is imported to read it.

A prior lies in a folder of its own, or with its tokenizer in that of a pipeline. Reading a file
imports numpy, which commands that only list their help do not, so that comes last.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spectok.errors import CheckpointError
from spectok.loading import model_folder, not_there
from spectok.messages import with_article
from spectok.plugins import registry
from spectok.saving import was_cut_short
from spectok.trained.names import find_model

PRIORS = ("prior", "pipeline")
"""Kinds of trained models that images are drawn from."""
INDEX = "model_index.json"
"""The file that makes a folder a pipeline; see :class:`spectok_generation.TokenPipeline`."""


def prior_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a prior or a pipeline, given itself, its run's folder, or its name.

    Args:
        path: What was given for a trained prior; the name is one of ``spectok list models``.

    Raises:
        CheckpointError: If there is no such folder, or it holds something else.
        ConfigError: If it is the name of a trained tokenizer.
    """
    name = os.fspath(path)
    find_model(name, PRIORS)
    folder = Path(model_folder(name))
    if not os.path.isdir(folder):
        raise CheckpointError(f"{not_there(name)}; give a trained prior, or train one first")
    if not is_pipeline(folder):
        class_of_prior(folder)
    return folder


def class_of_prior(folder: Path) -> str:
    """Return the name of the class of the prior in a folder.

    Raises:
        CheckpointError: If it holds none, or one of a class that no plugin provides.
    """
    from spectok.saved_config import read_config, saved_class

    wanted, known = saved_class(read_config(folder), str(folder)), registry.class_names("prior")
    if wanted not in known.values():
        raise CheckpointError(
            f"{folder} holds {with_article(wanted[:80])}, which no installed plugin provides as a "
            f"prior; installed: {', '.join(sorted(known.values()))}"
        )
    return wanted


def holds_prior(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder, or that of a run, holds a prior of a registered class."""
    try:
        class_of_prior(Path(model_folder(os.fspath(path))))
    except CheckpointError:
        return False
    return True


def is_pipeline(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a saved pipeline."""
    return os.path.isfile(Path(path, INDEX))


def draws(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a saved pipeline with a prior, or one that cannot be read.

    A pipeline of another library may have a tokenizer alone.
    """
    try:
        return is_pipeline(path) and "prior" in read_index(path)
    except CheckpointError:
        return True  # whoever loads it says why


def read_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read which parts a saved pipeline consists of.

    Raises:
        CheckpointError: If the folder holds no pipeline, or the file is damaged.
    """
    from spectok.reading import read_json

    if not is_pipeline(path):
        if was_cut_short(Path(path)):
            raise CheckpointError(
                f"{path} has no {INDEX}: a save into it was cut short; export it again"
            )
        raise CheckpointError(
            f"{path} is not a pipeline (no {INDEX}); make one from a run: spectok export RUN --out "
            f"DIR"
        )
    index = read_json(Path(path, INDEX), CheckpointError)
    if not isinstance(index, dict):
        raise CheckpointError(
            f"{Path(path, INDEX)} is not a JSON object; copy or export the pipeline again"
        )
    return index
