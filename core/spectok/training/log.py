"""``log.jsonl``: one line per window of steps, reading as one run however often it was resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import LoggerType

from spectok.errors import CheckpointError
from spectok.reading import parse_json, read_text
from spectok.training.contracts import Record, Run
from spectok.training.same_run import flatten
from spectok.writing import write_text

LOG = "log.jsonl"


def read_log(path: Path) -> list[Record]:
    """Read a run's log, up to a line that is cut short or damaged, as by a crash."""
    records = []
    if path.is_file():
        for line in read_text(path, CheckpointError).splitlines():
            try:
                record = parse_json(line, str(path), CheckpointError)
            except CheckpointError:
                break
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                break
            records.append(record)
    return records


def start_tracker(accelerator: Accelerator, run: Run, step: int) -> None:
    """Start the tracker, if the recipe names one, with the recipe as its parameters.

    Args:
        accelerator: Made with ``log_with``.
        run: The run; curves go into its folder.
        step: The step training continues from; TensorBoard hides what it has of later ones.
    """
    if not accelerator.log_with:
        return
    plain = (bool, int, float, str)
    settings = {k: v if isinstance(v, plain) else str(v) for k, v in flatten(run.recipe).items()}
    on_disk = accelerator.log_with[0] == LoggerType.TENSORBOARD  # where the name is a folder
    name = "tensorboard" if on_disk else "spectok"
    accelerator.init_trackers(name, settings, init_kwargs={"tensorboard": {"purge_step": step + 1}})


class RunLog:
    """Appends to a run's log, from a given step on.

    Args:
        path: The file.
        step: The step training continues from; later lines, of steps that are about to be repeated,
            are dropped.
        enabled: Whether this process writes; only the main one does.
    """

    def __init__(self, path: Path, step: int, enabled: bool):
        self.path, self.enabled = path, enabled
        self.records = [record for record in read_log(path) if record["step"] <= step]
        if enabled:
            self._guarded(self._rewrite)

    def append(self, record: Record) -> None:
        """Add a line."""
        self.records.append(record)
        if self.enabled:
            self._guarded(lambda: self._write(record))

    def _write(self, record: Record) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _rewrite(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        write_text(self.path, text, CheckpointError)

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from error
