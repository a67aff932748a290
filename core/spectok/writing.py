"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from spectok.errors import SpectokError
from spectok.places import home


def write_text(path: str | os.PathLike[str], text: str, error: type[SpectokError]) -> None:
    """Write a text as UTF-8; see :func:`whole_file`."""
    with whole_file(path, error) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], error: type[SpectokError]) -> Iterator[Path]:
    """Provide a path to write to; the finished file is then renamed.

    A full disk or a signal leaves an earlier file as it was, and no part of a new one.

    Args:
        path: The file; missing directories are created, links are followed.
        error: What to raise.

    Yields:
        A path of the same suffix in the same directory.

    Raises:
        SpectokError: Of the class ``error``: if the file cannot be written; names it.
    """
    given = Path(home(path))
    try:
        target = given.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as problem:  # a NUL in the name, a circle of links
        raise error(_message(given, problem)) from problem
    unfinished = target.with_name(f".{os.getpid()}.partial{target.suffix}")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, target)
    except OSError as problem:
        raise error(_message(given, problem)) from problem
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def flush(path: str | os.PathLike[str]) -> None:
    """Make sure a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _message(path: Path, problem: Exception) -> str:
    reason = problem.strerror if isinstance(problem, OSError) else None
    return f"{path} cannot be written: {reason or problem}"
