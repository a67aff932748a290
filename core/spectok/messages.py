"""Messages to the user while a library works: lines, remarks, progress.

Everything that trains, extracts or samples reports through this module only, and only from the main
process of a launch. A caller can silence it::

    with messages.silenced():
        train_tokenizer(recipe, output)
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from spectok.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

_silent = False


def is_main_process() -> bool:
    """Return whether this process speaks for all processes of a distributed launch."""
    return os.environ.get("RANK", "0") == "0"


def speaks() -> bool:
    """Return whether messages of this process are shown."""
    return is_main_process() and not _silent


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Show no messages and no progress inside the context; warnings and errors still appear."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def say(message: str) -> None:
    """Print one line."""
    if speaks():
        print(message, flush=True)


def note(message: str) -> None:
    """Print one remark to stderr."""
    if speaks():
        print(f"note: {one_line(message)}", file=sys.stderr, flush=True)


def console(**options: Any) -> Console:
    """Return a rich console that is quiet if messages are silenced.

    Args:
        **options: Options of :class:`rich.console.Console`.
    """
    from rich.console import Console

    return Console(quiet=not speaks(), **options)


def count_images(number: int) -> str:
    """Return ``"1 image"``, ``"1,797 images"`` and so on."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def with_article(name: str) -> str:
    """Return ``"a VQModel"``, ``"an AutoencoderKL"`` and so on."""
    return f"{'an' if name[:1] in set('AEIOU') else 'a'} {name}"


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with images/s and time left on a terminal; nothing elsewhere.

    Args:
        what: Description of the work.
        total: Number of images.

    Yields:
        A function to call with the number of images done since the last call.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    terminal = console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=terminal,
        transient=True,
        disable=terminal.quiet or not terminal.is_terminal,
    )
    task = bar.add_task(what, total=total, rate="")

    def advance(count: int) -> None:
        bar.advance(task, count)
        speed = bar.tasks[0].speed
        bar.update(task, rate=f"{speed:.0f} images/s" if speed else "")

    with bar:
        yield advance
