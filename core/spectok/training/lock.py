"""One training at a time in the folder of a run.

The lock is the operating system's: it ends with the process that holds it, however that ends, so
no dead process blocks a folder. Beside it a note says who holds it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from spectok.errors import CheckpointError
from spectok.messages import note
from spectok.processes import on_main
from spectok.reading import read_json

LOCK, HOLDER = ".lock", ".lock.json"
_held: set[tuple[int, Path]] = set()
"""What this process holds: a child that was forked from it holds nothing."""


@contextlib.contextmanager
def run_locked(output: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; every process of a launch calls this, the main one locks.

    A run inside the folder's own run may ask again. The note of a process that ended without
    taking it back is remarked on, and replaced.

    Args:
        output: Folder of the run; made if it does not exist.

    Raises:
        CheckpointError: On every process; if another launch trains there: names its host, process
            and start; or if the folder cannot be written to.
    """
    key = (os.getpid(), output.resolve())
    if key in _held:
        yield
        return
    lock = on_main(lambda: _acquire(output))
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        if lock is not None:
            _release(output, lock)


def _acquire(output: Path) -> FileLock:
    lock = FileLock(output / LOCK)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        if (output / HOLDER).is_file():
            note(f"taking over {output} from {_holder(output)}, which ended without a word")
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        content = {"host": platform.node(), "pid": os.getpid(), "since": now}
        (output / HOLDER).write_text(json.dumps(content), encoding="utf-8")
    except Timeout:
        raise CheckpointError(
            f"{output} is being trained in by {_holder(output)}; wait for it, stop it, or give "
            f"another output folder"
        ) from None
    except OSError as error:
        lock.release()
        raise CheckpointError(f"cannot write to {output}: {error.strerror}") from error
    return lock


def _release(output: Path, lock: FileLock) -> None:
    """Take the note and the lock's file away while holding it: whoever waits makes a new one."""
    for name in (HOLDER, LOCK):
        with contextlib.suppress(OSError):
            (output / name).unlink(missing_ok=True)
    lock.release()


def _holder(output: Path) -> str:
    try:
        found = read_json(output / HOLDER, CheckpointError)
        return f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (CheckpointError, KeyError, TypeError):
        return "another process"
