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

T = TypeVar("T")

BEAT = 1.0
"""Seconds between signs of life."""
ALIKE = ("ConfigError", "InputError", "DataError", "CheckpointError", "TrainingError")
"""Errors that are raised on every process as what they are on the main one."""
COLLECTIVE_FAILED = ("gloo", "NCCL", "Connection closed by peer", "Timed out waiting")

_turns, _visits = itertools.count(), itertools.count()
_patience: float | None = None


@contextlib.contextmanager
def watched(patience: float) -> Iterator[None]:
    """Show signs of life inside the context, and name the process through which it fails.

    A context inside another is part of it.

    Args:
        patience: Seconds without a sign of life after which a process counts as gone.

    Raises:
        TrainingError: If another process ended, or gives no more sign of life.
    """
    global _patience
    if world()[1] == 1 or _patience is not None:
        yield
        return
    store, rank = _store(), world()[0]
    visit = next(_visits)
    stop = threading.Event()
    threading.Thread(target=_beat, args=(store, rank, stop), daemon=True).start()
    _patience = patience
    try:
        yield
        _leave(store, visit, patience)
    except Exception as error:
        if not isinstance(error, SpectokError) and _is_of_the_group(error):
            raise TrainingError(_missing(store)) from error
        _tell(store, f"failed/{rank}", str(error) or type(error).__name__)
        _leave(store, visit, 3 * BEAT)
        raise
    finally:
        _patience = None
        stop.set()


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
    rank, size = world()
    key = f"main/{next(_turns)}"
    if rank != 0:
        store = _store()
        _await(store, key, [0])
        kind, text = json.loads(store.get(key))
        if kind is not None:
            raise (getattr(errors, kind) if kind in ALIKE else SpectokError)(text)
        return None
    told: tuple[str | None, str] = ("TrainingError", "the main process was stopped")
    try:
        result = action()
        told = (None, "")
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
        _await(store, f"here/{turn}/{other}", [other])


def _await(store: Any, key: str, ranks: list[int]) -> None:
    """Wait for a key that one of some processes will set.

    Raises:
        TrainingError: If such a process failed, or gives no sign of life.
    """
    patience = _patience or float("inf")
    seen: dict[int, tuple[Any, float]] = {}
    while True:
        try:
            store.wait([key], timedelta(seconds=BEAT))
            return
        except dist.DistStoreError:
            pass  # not yet
        except RuntimeError as error:
            raise TrainingError(_ended(0)) from error
        for rank in ranks:
            if store.check([f"failed/{rank}"]):
                raise TrainingError(_failed(store, rank))
            beat = _read(store, rank)
            if rank not in seen or seen[rank][0] != beat:
                seen[rank] = (beat, time.monotonic())
            elif time.monotonic() - seen[rank][1] > patience:
                raise TrainingError(_ended(rank))


def _leave(store: Any, visit: int, patience: float) -> None:
    """Let the main process, where the store may live, leave last: others may still be reading."""
    rank, size = world()
    _tell(store, f"left/{visit}/{rank}", "")
    if rank == 0:
        keys = [f"left/{visit}/{other}" for other in range(size)]
        with contextlib.suppress(RuntimeError):
            store.wait(keys, timedelta(seconds=patience))


def _beat(store: Any, rank: int, stop: threading.Event) -> None:
    for number in itertools.count():
        try:
            store.set(f"beat/{rank}", str(number))
        except RuntimeError:  # its host is gone; whoever needs the store says so
            return
        if stop.wait(BEAT):
            return


def _missing(store: Any) -> str:
    """Return which process a failed collective is due to."""
    own, size = world()
    others = [rank for rank in range(size) if rank != own]
    try:
        before = {rank: _read(store, rank) for rank in others}
        time.sleep(3 * BEAT)
        failed = [rank for rank in others if store.check([f"failed/{rank}"])]
        silent = [rank for rank in others if _read(store, rank) == before[rank]]
    except RuntimeError:  # the store lives in the main process
        return _ended(0)
    if failed:
        return _failed(store, failed[0])
    return _ended(*silent)


def _failed(store: Any, rank: int) -> str:
    return f"process {rank} of {world()[1]} stopped: {store.get(f'failed/{rank}').decode()}"


def _ended(*ranks: int) -> str:
    names = ", ".join(map(str, ranks)) or "another"
    return (
        f"process {names} of {world()[1]} has ended or does not answer, so the others stop; the "
        f"last checkpoint is intact: start all of them again with --resume"
    )


def _is_of_the_group(error: BaseException) -> bool:
    """Return whether an error says that processes could not speak to one another."""
    said = isinstance(error, RuntimeError) and any(sign in str(error) for sign in COLLECTIVE_FAILED)
    return said or isinstance(error, dist.DistError)


def _read(store: Any, rank: int) -> bytes | None:
    key = f"beat/{rank}"
    return store.get(key) if store.check([key]) else None


def _tell(store: Any, key: str, text: str) -> None:
    with contextlib.suppress(RuntimeError):  # nobody is left to be told
        store.set(key, text)


def _store() -> Any:
    return dist.PrefixStore("spectok", dist.distributed_c10d._get_default_store())
