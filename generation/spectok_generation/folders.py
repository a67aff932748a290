"""Find the folder of a trained prior, before anything is imported to read it."""

from __future__ import annotations

import os
from pathlib import Path

from spectok.errors import CheckpointError
from spectok.loading import model_folder


def prior_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a prior or a pipeline, given itself or its run's folder.

    Args:
        path: What was given for a trained prior.

    Raises:
        CheckpointError: If there is no such folder.
    """
    folder = Path(model_folder(os.fspath(path)))
    if not os.path.isdir(folder):
        raise CheckpointError(f"no directory {folder}; give a trained prior, or train one first")
    return folder
