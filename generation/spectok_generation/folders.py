"""Find the folder of a trained prior, before anything is imported to read it."""

from __future__ import annotations

import os
from pathlib import Path

from spectok.errors import CheckpointError
from spectok.loading import model_folder, not_there
from spectok.trained.names import find_model

PRIORS = ("prior", "pipeline")
"""Kinds of trained models that images are drawn from."""


def prior_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a prior or a pipeline, given itself, its run's folder, or its name.

    Args:
        path: What was given for a trained prior; the name is one of ``spectok list models``.

    Raises:
        CheckpointError: If there is no such folder.
        ConfigError: If it is the name of a trained tokenizer.
    """
    name = os.fspath(path)
    find_model(name, PRIORS)
    folder = Path(model_folder(name))
    if not os.path.isdir(folder):
        raise CheckpointError(f"{not_there(name)}; give a trained prior, or train one first")
    return folder
