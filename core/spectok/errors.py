"""Every error that spectok raises on purpose.

    SpectokError
    ├── ConfigError          a recipe, an override or a constructor argument
    ├── UnknownNameError     a name that no plugin registers
    ├── PluginError          a plugin that cannot be loaded, or two that claim one name
    ├── InputError           images or arguments of the wrong size, type or range
    │   └── TokenError       indices outside their TokenSpec
    ├── DataError            a data set that is missing, empty or damaged
    ├── CheckpointError      a saved model or training state that cannot be read or written
    └── TrainingError        training that cannot go on (a non-finite loss, a wrong launch)

Each message says what was given, the rule it broke and the remedy, on one line if possible. The
command line prints the message alone and exits with status 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

SHOWN = 200  # characters
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlong, _REPR.maxother = 3, SHOWN, SHOWN
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 16
_REPR.maxstring = SHOWN


class SpectokError(Exception):
    """Base of every error that spectok raises on purpose."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, each to be told on a line of its own."""
        return (str(self),)


class ConfigError(SpectokError, ValueError):
    """A recipe, an override or a constructor argument is not valid.

    Args:
        *problems: What is wrong, one problem each.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self._problems = problems

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, each to be told on a line of its own."""
        return self._problems


class UnknownNameError(SpectokError, LookupError):
    """Nothing registers the name that was asked for.

    Args:
        kind: What was looked for, such as ``"tokenizer"``.
        name: The name that was given.
        known: The registered names.
        note: One more sentence for the message.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], note: str = ""):
        known = sorted(known)
        self.kind, self.name, self.known = kind, name, known
        listing = ", ".join(known) or "none"
        message = f"unknown {kind} {shown(name)}{did_you_mean(name, known)}; installed: {listing}"
        super().__init__(message + (f". {note}" if note else ""))


class PluginError(SpectokError):
    """A plugin cannot be loaded, or two plugins claim one name."""


class InputError(SpectokError, ValueError):
    """Images or arguments have the wrong size, type or range."""


class TokenError(InputError):
    """Indices do not belong to their :class:`~spectok.TokenSpec`."""


class DataError(SpectokError):
    """A data set is missing, empty or damaged."""


class CheckpointError(SpectokError):
    """A saved model or training state cannot be read or written."""


class TrainingError(SpectokError):
    """Training cannot go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name)[:SHOWN], [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: Any) -> str:
    """Return a value as messages show it: its ``repr``, cut short where it is long or nested."""
    text = _REPR.repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def one_line(text: str) -> str:
    """Return a text with line breaks and other control characters written as escapes.

    A name may hold a line break or a terminal's escape character; printed as it is, it could pass
    for a message of our own, or change what is shown.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
