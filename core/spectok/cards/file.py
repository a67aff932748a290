"""The format of a card: a YAML header, a text, and marks that tell what spectok wrote itself.

A part of a card is replaced without touching the rest: a top-level key of the header, or the lines
between two comments of the text. What a person wrote around them stays as it is.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from spectok.errors import CheckpointError
from spectok.recipes.yaml12 import dump_yaml, parse_yaml

BEGIN, END = "<!-- numbers, written by spectok -->", "<!-- end of numbers -->"
"""Comments around the lines that :func:`replace_numbers` replaces."""
_CARD = re.compile(r"\A---[ \t]*\r?\n(?P<header>.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_WRITTEN = re.compile(r"^  written: sha256-([0-9a-f]{64})$", re.M)
_NOTHING = "0" * 64


def join(header: dict[str, Any], text: str) -> str:
    """Return a card made of its header and its text."""
    return f"---\n{dump_yaml(header)}---\n{text}"


def read_header(card: str, place: str) -> dict[str, Any]:
    """Return the header of a card; empty if it has none.

    Args:
        card: The whole card.
        place: Where it came from, for messages.

    Raises:
        CheckpointError: If the header is not YAML, or no mapping.
    """
    found = _CARD.match(card)
    header = parse_yaml(found["header"], place, CheckpointError) if found else None
    if header is not None and not isinstance(header, dict):
        raise CheckpointError(f"{place}: its header is no mapping of keys to values")
    return header or {}


def replace_key(card: str, key: str, value: Any) -> str:
    """Return a card with one top-level key of its header set; None removes it."""
    found = _CARD.match(card)
    if found is None:
        return card if value is None else join({key: value}, card)
    header = found["header"]
    own = re.compile(rf"^{re.escape(key)}[ \t]*:.*\n(?:[ \t-].*\n|[ \t]*\n)*", re.M)
    new = "" if value is None else dump_yaml({key: value})
    header = own.sub(lambda _: new, header, count=1) if own.search(header) else header + new
    return f"---\n{header}---\n{card[found.end() :]}"


def replace_numbers(card: str, lines: str) -> str:
    """Return a card with the lines between :data:`BEGIN` and :data:`END` replaced.

    A card without these comments gets them at its end.
    """
    begin, end = card.find(BEGIN), card.find(END)
    if begin < 0 or end < begin:
        return f"{card.rstrip()}\n\n{BEGIN}\n{lines}\n{END}\n"
    return f"{card[:begin]}{BEGIN}\n{lines}\n{card[end:]}"


def find_numbers(card: str) -> str | None:
    """Return the lines between the two comments; None if they are not there."""
    begin, end = card.find(BEGIN), card.find(END)
    return None if begin < 0 or end < begin else card[begin + len(BEGIN) : end].strip("\n")


def placeholder() -> str:
    """Return what stands in a header for the hash that :func:`seal` puts there."""
    return f"sha256-{_NOTHING}"


def seal(card: str) -> str:
    """Return a card with a hash of itself in its header, by which an edit is noticed later."""
    blank = _WRITTEN.sub(f"  written: {placeholder()}", card, count=1)
    digest = hashlib.sha256(blank.encode()).hexdigest()
    return blank.replace(placeholder(), f"sha256-{digest}", 1)


def is_untouched(card: str) -> bool:
    """Return whether a card is as spectok wrote it."""
    return _WRITTEN.search(card) is not None and seal(card) == card
