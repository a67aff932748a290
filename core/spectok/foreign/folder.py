"""A saved model's folder, its config, and the pipeline it may be a part of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectok.errors import CheckpointError
from spectok.reading import read_json

PIPELINE = "model_index.json"
"""The file in which diffusers lists the parts of a pipeline, each in a folder of its own."""


@dataclass(frozen=True)
class ForeignFolder:
    """A saved model: where it is, and what its ``config.json`` says.

    Args:
        folder: Where the config and the weights are.
        root: The folder or repository around it; the same where there is none.
        place: Its name for messages.
        config: What ``config.json`` holds; empty if there is none.
    """

    folder: Path
    root: Path
    place: str
    config: Mapping[str, Any]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in :attr:`folder`."""
        return tuple(sorted(path.name for path in self.folder.iterdir() if not path.is_dir()))

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file from :attr:`folder`, else :attr:`root`; None if neither has it.

        Args:
            name: Path below either.

        Raises:
            CheckpointError: If the file is no JSON object.
        """
        for path in (self.folder / name, self.root / name):
            if os.path.lexists(path):
                content = read_json(path, CheckpointError)
                if not isinstance(content, dict):
                    raise CheckpointError(f"{path} is not a JSON object; copy it again")
                return content
        return None

    @property
    def pipeline(self) -> Mapping[str, Any]:
        """What ``model_index.json`` says of the pipeline it is a part of; empty if of none."""
        return {} if self.folder == self.root else self.read(PIPELINE) or {}
