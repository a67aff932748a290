"""Which text is a path on this machine, which may be an id on a hub, and which is a name.

One rule for flags, recipes and Python: a name that is registered means what is registered, from
any directory; ``./name`` or ``name/`` means the folder. What looks like a path is never sent to a
hub.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
from pathlib import Path

from spectok.messages import note

HUB_ID = re.compile(r"(?![.-])[\w.-]{1,95}(?<![.-])/(?![.-])[\w.-]{1,95}(?<![.-])", re.ASCII)
"""``owner/name`` as the Hugging Face Hub allows it."""
FILES = (
    *(".bin", ".ckpt", ".csv", ".git", ".jpeg", ".jpg", ".json", ".npz", ".parquet", ".png"),
    *(".pt", ".pth"),
    *(".safetensors", ".tar", ".txt", ".webp", ".yaml", ".yml", ".zip"),
)
"""Endings of files, which no id on a hub has."""
OWN_FOLDERS = ("runs",)
"""Folders that commands make, whose contents are on this machine or nowhere."""
LOOKED_AT, LISTED = 10_000, 5
_STARTS = (".", "~", "/", "\\")


def home(path: str | os.PathLike[str]) -> str:
    """Return a path as text, with ``~`` as the home directory; anything else is unchanged."""
    return os.path.expanduser(os.fspath(path))


def is_path(text: str) -> bool:
    """Return whether a text is written as a path: ``./x``, ``~/x``, ``/x``, ``x/``, ``a/b/c``."""
    return text.startswith(_STARTS) or text.endswith(("/", "\\")) or text.count("/") > 1


def may_be_hub_id(text: str) -> bool:
    """Return whether a text that is no folder here may be ``owner/name`` on a hub.

    It may not if it is written as a path, has a character that ids lack, ends like a file, or its
    first half is here, or called like a folder that commands make.
    """
    if is_path(text) or not HUB_ID.fullmatch(text) or "--" in text or ".." in text:
        return False
    owner, _, _ = text.partition("/")
    is_own = owner.lower() in OWN_FOLDERS or os.path.lexists(owner)
    return not is_own and not _ends_like_a_file(text)


def names_a_place(text: str) -> bool:
    """Return whether a text, if nothing is registered by it, was meant for a place.

    It was if it has a separator, ends like a file, or something here is called so.
    """
    separated = is_path(text) or "/" in text or "\\" in text
    return separated or _ends_like_a_file(text) or os.path.lexists(home(text))


def _ends_like_a_file(text: str) -> bool:
    return os.path.splitext(text)[1].lower() in FILES


def missing(path: str | os.PathLike[str]) -> str:
    """Return ``"x/y does not exist"``, with what is there instead: the closest name, or some.

    Args:
        path: A path at which there is nothing.
    """
    given = os.fspath(path)
    whole = Path(home(given))
    above = next((part for part in whole.parents if os.path.isdir(part)), Path())
    name, *below = whole.parts[len(above.parts) :] or ("",)
    if os.path.islink(link := above / name):
        return f"{given} does not exist ({link} is a link to {os.readlink(link)}, which is gone)"
    return f"{given} does not exist{_instead(above, name, Path(*below))}"


def _instead(above: Path, name: str, below: Path) -> str:
    """Return what a message says of the folder in which a name is missing.

    Args:
        above: The folder.
        name: What is not in it.
        below: What was looked for inside that; an empty path if nothing.
    """
    try:
        with os.scandir(above) as entries:
            names = [e.name for e in itertools.islice(entries, LOOKED_AT) if e.name[:1] != "."]
    except OSError:
        return ""
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        other = above / close[0]
        return (
            f" (did you mean {str(other / below if os.path.exists(other / below) else other)!r}?)"
        )
    if below != Path():
        return f" (there is no {above / name})"
    if above in (Path(), Path("/")) or not names:
        return ""
    listed = ", ".join(sorted(names)[:LISTED]) + (" …" if len(names) > LISTED else "")
    return f" ({above} holds {listed})"


def remark_taken(name: str, what: str) -> None:
    """Say, once, that a name is taken for what is installed where a folder here has that name.

    Args:
        name: What was given.
        what: What it is taken for.
    """
    if not is_path(name) and os.path.lexists(name):
        _say(f"{name} is taken for {what}, not for the one in this directory: write ./{name}")


@functools.cache
def _say(text: str) -> None:
    note(text)
