"""List the files below a directory: links are followed, loops are not."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from spectok.data.rows import Problem
from spectok.errors import DataError, one_line, shown

_SHOWN = 6
_LONGEST_SUFFIX = 12


@dataclass
class Listing:
    """The files below a directory, except hidden ones.

    Args:
        root: The directory.
        files: Paths relative to it, with ``/``, sorted.
        passed_over: Linked directories that were not read again, and under which name each was read
            already; None where it lies above the data.
        problems: Directories that cannot be read.
        renamed: The new names of files that go by the name of another link.
        remarks: Further remarks, one sentence each.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    passed_over: dict[str, str | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def with_suffix(self, suffixes: Iterable[str]) -> list[str]:
        """Return the files with one of these suffixes, in lower case and with their dot."""
        wanted = tuple(suffixes)
        return [name for name in self.files if suffix_of(name) in wanted]

    def notes(self) -> list[str]:
        """Return remarks on the directories that were not read again."""
        if not self.passed_over:
            return self.remarks
        what = "directories are" if len(self.passed_over) > 1 else "directory is"
        return [
            f"{len(self.passed_over):,} linked {what} not followed, being read under another name "
            f"or above the data: {some(list(self.passed_over))}",
            *self.remarks,
        ]


def list_files(root: Path) -> Listing:
    """Return the files below a directory.

    Raises:
        DataError: If it is not a directory.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a directory; give a directory")
    listing = Listing(root)
    listing.files += walk(root, listing.passed_over, listing.problems)
    listing.files.sort()
    return listing


def walk(
    root: Path,
    passed_over: dict[str, str | None] | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[str]:
    """Yield the files below a directory, by their relative paths, in no particular order.

    Each directory is read once, known by its device and inode and not by its name: links are read
    last, and neither those that point upwards nor those to a directory that is read anyway are
    followed.

    Args:
        root: The directory.
        passed_over: Receives the links that were not followed, and what they are read as.
        problems: Receives the directories that cannot be read.
    """
    real = root.resolve()
    seen: dict[tuple[int, int], str | None] = {
        _identity(str(parent)): None for parent in real.parents
    }
    own, linked = deque([""]), deque[str]()
    while own or linked:
        base = own.popleft() if own else linked.popleft()
        try:
            identity = _identity(os.path.join(root, base))
            with os.scandir(os.path.join(root, base)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if problems is not None:
                reason = f"the directory cannot be read: {error.strerror}"
                problems.append(Problem(base or str(root), reason))
            continue
        if identity in seen:
            if passed_over is not None:
                passed_over[base] = seen[identity]
            continue
        seen[identity] = base
        for entry in found:
            name = f"{base}/{entry.name}".lstrip("/")
            if entry.name.startswith("."):
                continue
            if _is_directory(entry):
                (linked if entry.is_symlink() else own).append(name)
            else:
                yield name


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a person wrote, which need not exist.

    Raises:
        DataError: If no file can have it: it is empty, too long, or in an unknown person's home.
    """
    text = os.fspath(path)
    try:
        found = Path(text).expanduser()
        found.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{shown(text)} is not a path ({reason}); give another") from error
    if not text:
        raise DataError("the path of the data is empty; for this directory, give '.'")
    return found


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, with its dot; empty if it has none."""
    return os.path.splitext(name)[1].lower()


def composed(name: str) -> str:
    """Return a name in the one normal form in which names are compared: é as one character."""
    return normalize("NFC", name)


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(one_line, names[:shown])) + more


def unread_note(suffixes: Iterable[str], what: str = "files are") -> list[str]:
    """Return a remark on files that were not read, counted by suffix.

    Args:
        suffixes: The suffix of each file, such as ``.heic``; empty for none.
        what: The files and the verb.
    """
    kinds = (one_line(s) if len(s) <= _LONGEST_SUFFIX else "of other kinds" for s in suffixes)
    counts = Counter(kind or "without a suffix" for kind in kinds).most_common()
    if not counts:
        return []
    listing = ", ".join(f"{count:,} {kind}" for kind, count in counts[:_SHOWN])
    rest = sum(count for _, count in counts[_SHOWN:])
    more = f", {rest:,} others" if rest else ""
    return [f"{sum(count for _, count in counts):,} {what} not read: {listing}{more}"]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    """Return what tells a directory or file from all others, whatever it is called."""
    found = os.stat(path)
    return found.st_dev, found.st_ino
