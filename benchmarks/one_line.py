"""What benchmark programs are refused for, in one line, as ``spectok`` itself says it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from spectok.errors import SpectokError


def run_program(main: Callable[[], None]) -> None:
    """Run a program, and end it with one line and status 1 if it is refused or stopped."""
    try:
        main()
    except (SpectokError, OSError) as error:
        sys.exit("error: " + "; ".join(str(error).splitlines()))
    except KeyboardInterrupt:
        sys.exit("stopped")


def positive(text: str) -> int:
    """Return a whole number from 1 on: a type of options.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)
