"""The one door for small files that somebody else may have written: text, JSON and npz.

A reader is given a path and the error to raise. It refuses what is no regular file (a pipe or a
device never ends), what is larger than such a file ever is, what nests deeper or counts further
than Python's own parsers bear, and archives whose members claim far more memory than their bytes
can account for; each in one line that names the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spectok.errors import SpectokError
from spectok.places import home

MAX_TEXT_BYTES = 64 << 20
MAX_DEPTH = 100
EXPANSION, SMALLEST_BOUND = 100, 16 << 20
"""An archive may claim this many times its own size, and this many bytes in any case."""


def read_text(
    path: str | os.PathLike[str], error: type[SpectokError], max_bytes: int = MAX_TEXT_BYTES
) -> str:
    """Return a text file, as UTF-8 without a byte order mark.

    Args:
        path: The file.
        error: What to raise.
        max_bytes: Largest size.

    Raises:
        SpectokError: Of the class ``error``: names the file and what is wrong with it.
    """
    path = Path(home(path))
    check_regular(path, error, max_bytes)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path} cannot be read: {_reason(problem)}") from problem


def read_json(
    path: str | os.PathLike[str], error: type[SpectokError], max_bytes: int = MAX_TEXT_BYTES
) -> Any:
    """Return what a JSON file holds.

    Args:
        path: The file.
        error: What to raise.
        max_bytes: Largest size.

    Raises:
        SpectokError: Of the class ``error``: names the file and what is wrong with it.
    """
    return parse_json(read_text(path, error, max_bytes), str(path), error)


def parse_json(text: str, place: str, error: type[SpectokError]) -> Any:
    """Return what a JSON text holds.

    Args:
        text: The document.
        place: Where it came from, for messages.
        error: What to raise.

    Raises:
        SpectokError: Of the class ``error``: if it is no JSON, nests deeper than 100 levels, or
            holds an integer of thousands of digits or text that is not Unicode.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise error(f"{place} is not valid JSON: it nests too deeply") from None
    except ValueError as problem:  # also integers longer than Python converts
        raise error(f"{place} is not valid JSON: {_reason(problem)}") from problem
    if _is_deeper(value, MAX_DEPTH):
        raise error(f"{place} is not valid JSON: it nests deeper than {MAX_DEPTH} levels")
    if r"\u" in text and not _is_unicode(value):
        raise error(f"{place} is not valid JSON: it holds half of a surrogate pair")
    return value


def read_npz(path: str | os.PathLike[str], error: type[SpectokError]) -> dict[str, np.ndarray]:
    """Return the arrays of an npz archive; nothing in it is unpickled.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        SpectokError: Of the class ``error``: if it is damaged or encrypted, or claims more memory
            than 100 times its size (16 MiB where that is more).
    """
    path = Path(home(path))
    check_regular(path, error)
    allowed = max(SMALLEST_BOUND, EXPANSION * path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(_claimed_bytes(archive, member) for member in archive.infolist())
        if claimed > allowed:
            raise error(
                f"{path} cannot be read: its arrays claim {claimed:,} bytes, over {allowed:,} for "
                f"a file of its size"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except SpectokError:
        raise
    except Exception as problem:  # zip, zlib and numpy fail in many ways on damaged bytes
        raise error(f"{path} cannot be read as npz: {_reason(problem)}") from problem


def _claimed_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Return the memory that a member asks for: by its directory entry, or its array's header."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in a way that npz files are not")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read_header[version](stream)
    return max(member.file_size, math.prod(shape) * dtype.itemsize)


def sha256_of_file(path: str | os.PathLike[str], error: type[SpectokError]) -> str:
    """Return the hash of a file's bytes, read once per process as long as the file stays as it is.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        SpectokError: Of the class ``error``: if it cannot be read.
    """
    check_regular(path, error)
    found = os.stat(path)
    try:
        return _hash(os.path.realpath(path), found.st_ino, found.st_size, found.st_mtime_ns)
    except OSError as problem:
        raise error(f"{path} cannot be read: {_reason(problem)}") from problem


@functools.lru_cache(maxsize=64)
def _hash(path: str, *_state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(
    path: str | os.PathLike[str], error: type[SpectokError], max_bytes: int | None = None
) -> None:
    """Refuse what is no regular file, or too large a one.

    Args:
        path: The file.
        error: What to raise.
        max_bytes: Largest size; None: any.

    Raises:
        SpectokError: Of the class ``error``.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # a name with a NUL character is a ValueError
        raise error(f"{os.fspath(path)!r} cannot be read: {_reason(problem)}") from problem
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a device or pipe"
        raise error(f"{path} is {kind}, not a file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise error(f"{path} has {found.st_size:,} bytes; such a file has at most {max_bytes:,}")


def _is_deeper(value: Any, depth: int) -> bool:
    """Return whether containers nest deeper than so many levels, without recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for container in level
            if isinstance(container, (dict, list))
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True


def _is_unicode(value: Any) -> bool:
    """Return whether every text inside could be written to a file."""
    if isinstance(value, str):
        return re.search("[\ud800-\udfff]", value) is None
    if isinstance(value, dict):
        return all(_is_unicode(part) for pair in value.items() for part in pair)
    return not isinstance(value, list) or all(map(_is_unicode, value))


def _reason(problem: BaseException) -> str:
    """Return what went wrong, on one line."""
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    text = " ".join(str(problem).split())
    if "set_int_max_str_digits" in text:  # Python's advice is to lift the limit
        return "a number in it has too many digits"
    return text[:200] or type(problem).__name__
