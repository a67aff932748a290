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
def run_locked(output: Path, *, beside: bool = False) -> Iterator[None]:
    """Hold the lock of a run's folder; every process of a launch calls this, the main one locks.

    A run inside the folder's own run may ask again. The note of a process that ended without
    taking it back is remarked on, and replaced.

    Args:
        output: Folder of the run; made if it does not exist.
        beside: Lock beside the folder, which need not exist, instead of in it.

    Raises:
        CheckpointError: On every process; if another launch works there: names its host, process
            and start; or if the folder cannot be written to.
    """
    key = (os.getpid(), output.resolve())
    if key in _held:
        yield
        return
    place = output.with_name(output.name + LOCK) if beside else output / LOCK
    lock = on_main(lambda: _acquire(output, place))
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        if lock is not None:
            _release(place, lock)


def _acquire(output: Path, place: Path) -> FileLock:
    lock, note_of = FileLock(place), _holder_file(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        if note_of.is_file():
            note(f"taking over {output} from {_holder(place)}, which ended without a word")
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        content = {"host": platform.node(), "pid": os.getpid(), "since": now}
        note_of.write_text(json.dumps(content), encoding="utf-8")
    except Timeout:
        _check_can_write(output, place)  # filelock also waits where no file can be made
        raise CheckpointError(
            f"{output} is in use by {_holder(place)}; wait for it, stop it, or give another output "
            f"folder"
        ) from None
    except OSError as error:
        lock.release()
        raise CheckpointError(f"cannot write to {output}: {error.strerror}") from error
    return lock


def _check_can_write(output: Path, place: Path) -> None:
    try:
        place.open("a").close()
    except OSError as error:
        raise CheckpointError(f"cannot write to {output}: {error.strerror}") from error


def _release(place: Path, lock: FileLock) -> None:
    """Take the note and the lock's file away while holding it: whoever waits makes a new one."""
    for path in (_holder_file(place), place):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    lock.release()


def _holder_file(place: Path) -> Path:
    return place.with_name(place.name + ".json")


def _holder(place: Path) -> str:
    try:
        found = read_json(_holder_file(place), CheckpointError)
        return f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (CheckpointError, KeyError, TypeError):
        return "another process"
