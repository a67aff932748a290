"""The processes of one launch: one works while the others wait, and one that is gone is named.

A collective of the process group times out while another process works for long. So whatever the
main process does alone is waited for at the launch's key-value store instead, for as long as every
process shows signs of life. With one process, each function does its work and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from spectok import errors
from spectok.distributed import world
from spectok.errors import CheckpointError, SpectokError, TrainingError
from spectok.interruption import Interrupted

T = TypeVar("T")

BEAT = 1.0
"""Seconds between signs of life."""
ALIKE = ("ConfigError", "InputError", "DataError", "CheckpointError", "TrainingError")
"""Errors that are raised on every process as what they are on the main one."""

_turns, _visits = itertools.count(), itertools.count()
_watch: Watch | None = None


class Watch:
    """Shows signs of life of this process, and listens for a failure of another.

    Args:
        patience: Seconds without a sign of life after which a process counts as gone.
    """

    def __init__(self, patience: float):
        self.patience, self.failure = patience, ""
        self._store, self._visit = _store(), next(_visits)
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process stops."""
        told = {"rank": world()[0], "text": str(error) or type(error).__name__}
        _tell(self._store, f"failed/{self._visit}", json.dumps(told))

    def leave(self, patience: float) -> None:
        """Let the main process, where the store may live, leave last: others may be reading."""
        rank, size = world()
        _tell(self._store, f"left/{self._visit}/{rank}", "")
        if rank == 0:
            keys = [f"left/{self._visit}/{other}" for other in range(size)]
            with contextlib.suppress(RuntimeError):
                self._store.wait(keys, timedelta(seconds=patience))

    def stop(self) -> None:
        """Show no more signs of life."""
        self._stop.set()

    def beat_of(self, rank: int) -> bytes | None:
        """Return the last sign of life of a process."""
        key = f"beat/{self._visit}/{rank}"
        return self._store.get(key) if self._store.check([key]) else None

    def find_failure(self) -> str:
        """Return which process failed, or has ended without a word; empty if none has."""
        found: list[str] = []
        looking = threading.Thread(target=lambda: found.append(self._look()), daemon=True)
        looking.start()
        try:
            looking.join(10 * BEAT)
        except Interrupted:  # the launcher ends the others, too: still say why
            looking.join(10 * BEAT)
        return found[0] if found else describe_ended(0)  # the store lives there, and hangs

    def _look(self) -> str:
        own, size = world()
        others = [rank for rank in range(size) if rank != own]
        try:
            before = {rank: self.beat_of(rank) for rank in others}
            deadline = time.monotonic() + 3 * BEAT
            while not self.failure and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
            if self.failure:
                return self.failure
            silent = [rank for rank in others if self.beat_of(rank) == before[rank]]
        except RuntimeError:  # the store lived in the main process
            return self.failure or describe_ended(0)
        return describe_ended(*silent) if silent else ""

    def _beat(self) -> None:
        rank, size = world()
        for number in itertools.count():
            try:
                self._store.set(f"beat/{self._visit}/{rank}", str(number))
                if not self.failure and self._store.check([f"failed/{self._visit}"]):
                    told = json.loads(self._store.get(f"failed/{self._visit}"))
                    self.failure = f"process {told['rank']} of {size} stopped: {told['text']}"
            except RuntimeError:  # the store is gone; whoever needs it says so
                return
            if self._stop.wait(BEAT):
                return


@contextlib.contextmanager
def watched(patience: float) -> Iterator[None]:
    """Show signs of life inside the context, and name the process through which it fails.

    A context inside another is part of it.

    Args:
        patience: Seconds without a sign of life after which a process counts as gone.

    Raises:
        TrainingError: If another process ended, or gives no more sign of life.
    """
    global _watch
    if world()[1] == 1 or _watch is not None:
        yield
        return
    watch = _watch = Watch(patience)
    try:
        yield
        watch.leave(patience)
    except SpectokError as error:
        watch.fail(error)
        watch.leave(3 * BEAT)
        raise
    except (RuntimeError, Interrupted) as error:
        while_failing = isinstance(error.__context__, RuntimeError)  # its launcher ends the others
        if isinstance(error, Interrupted) and not while_failing:
            raise
        if failure := watch.find_failure():
            raise TrainingError(failure) from error
        watch.fail(error)
        raise
    finally:
        _watch = None
        watch.stop()


def describe_ended(*ranks: int) -> str:
    """Say which processes are gone."""
    return (
        f"process {', '.join(map(str, ranks))} of {world()[1]} has ended or does not answer, so "
        f"the others stop; the last checkpoint is intact: start all of them again with --resume"
    )


def on_main(action: Callable[[], T]) -> T | None:
    """Run an action on the main process while the others wait; fail on all if it fails.

    Every process must call this, in the same order as everything else they do together: it is the
    main process that decides whether there is anything to do.

    Returns:
        What the action returned, on the main process; None on the others.

    Raises:
        CheckpointError: If the action cannot write its files.
        TrainingError: If a process ended meanwhile.
    """
    found: list[T] = []
    from_main(lambda: found.append(action()))
    return found[0] if found else None


def from_main(action: Callable[[], T]) -> T:
    """Run an action on the main process like :func:`on_main`, and return its result on all.

    Args:
        action: Returns something of plain JSON types.
    """
    rank, size = world()
    key = f"main/{next(_turns)}"
    if rank != 0:
        store = _store()
        _await(store, key, 0)
        kind, content = json.loads(store.get(key))
        if kind is not None:
            raise (getattr(errors, kind) if kind in ALIKE else SpectokError)(content)
        return content
    told: tuple[str | None, Any] = ("TrainingError", "the main process was stopped")
    try:
        result = action()
        told = (None, result)
        return result
    except OSError as problem:
        error = CheckpointError(f"cannot write to the folder of the run: {problem}")
        told = ("CheckpointError", str(error))
        raise error from problem
    except Exception as problem:
        told = (type(problem).__name__, str(problem))
        raise
    finally:
        if size > 1:
            _tell(_store(), key, json.dumps(told))


def barrier() -> None:
    """Wait until every process arrives here, however long that takes a living one."""
    rank, size = world()
    turn = next(_turns)
    if size == 1:
        return
    store = _store()
    store.set(f"here/{turn}/{rank}", "")
    for other in range(size):
        _await(store, f"here/{turn}/{other}", other)


def _await(store: Any, key: str, rank: int) -> None:
    """Wait for a key that a process will set.

    Raises:
        TrainingError: If a process failed, or this one gives no sign of life.
    """
    beat, since = None, time.monotonic()
    while True:
        try:
            store.wait([key], timedelta(seconds=BEAT))
            return
        except dist.DistStoreError:
            pass  # not yet
        except RuntimeError as error:
            raise TrainingError(describe_ended(0)) from error
        if _watch is None:
            continue
        if _watch.failure:
            raise TrainingError(_watch.failure)
        now = _watch.beat_of(rank)
        if now != beat:
            beat, since = now, time.monotonic()
        elif time.monotonic() - since > _watch.patience:
            raise TrainingError(describe_ended(rank))


def _tell(store: Any, key: str, text: str) -> None:
    with contextlib.suppress(RuntimeError):  # nobody is left to be told
        store.set(key, text)


def _store() -> Any:
    return dist.PrefixStore("spectok", dist.distributed_c10d._get_default_store())
