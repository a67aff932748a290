"""Recognise splits by name: ``train``, ``Test``, ``training_set``, ``data/val``, ``train-01.tar``.

One rule for directories, tables and shards: among the parts of all paths, those that say ``train``
and those that say ``test`` or ``validation`` (in any usual spelling, and with the same rest, such
as ``seg_train`` and ``seg_test``) divide the data. A class called ``train`` beside ``bus`` and
``car`` does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from spectok.data.listing import some
from spectok.errors import DataError, did_you_mean

SPELLINGS = {
    "train": ("train", "training", "trn", "trainval"),
    "test": ("test", "testing", "tst"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation", "holdout"),
}
_MEANING = {word: split for split, words in SPELLINGS.items() for word in words}
_FILLER = "(?:data(?:set)?|set|image|img|picture|pic|photo|split|file|folder|part|shard)s?|of"
_JOINED = re.compile(rf"({'|'.join(_MEANING)})(?:{_FILLER})")
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")


class SplitName(NamedTuple):
    """What a name says about a split.

    Args:
        split: ``train``, ``test`` or ``validation``.
        rest: The other words of the name; empty if it says nothing else.
    """

    split: str
    rest: str


@lru_cache(1 << 16)
def parse_split_name(name: str, is_file: bool = False) -> SplitName | None:
    """Return what a name says about a split; None if it says nothing, or names two splits.

    Args:
        name: A directory, the stem of a file, or a split of a data set on the hub.
        is_file: Whether a split as the first word is all that counts, as in
            ``train-00000-of-00001-a09b74b3ef9c3b56``.
    """
    name = re.sub(r"(?i)(hold|held)[\W_]*out", "holdout", name)
    for text in (name, name.lower()):  # TestSet is two words, TRAINset is one
        words = [word.lower() for word in _WORD.findall(text)]
        words = [m[1] if (m := _JOINED.fullmatch(word)) else word for word in words]
        if words == ["train", "val"]:
            words = ["trainval"]
        meant = {_MEANING[word] for word in words if word in _MEANING}
        if meant:
            break
    if len(meant) != 1:
        return None
    if is_file and words[0] in _MEANING:
        return SplitName(meant.pop(), "")
    rest = [word for word in words if word not in _MEANING and not re.fullmatch(_FILLER, word)]
    return SplitName(meant.pop(), " ".join(rest))


class Division:
    """Which of many paths belong to which split.

    Args:
        paths: Relative paths of files, with ``/``.
        file_names: Whether files may be named after splits too, as tables and shards are. Images
            are not: ``test_1.png`` is a picture like any other.

    Attributes:
        splits: The paths of each split, in the given order; empty if the data are not divided.
        outside: The paths that belong to no split, in the given order.
    """

    def __init__(self, paths: Sequence[str], file_names: bool = False):
        self._file_names, self._rest_is_train = file_names, False
        self._words: set[str] = set()
        self._containers: set[str] = set()
        self._places: dict[str, tuple[str | None, int | None]] = {}
        keys = list(dict.fromkeys(map(self._key, paths)))
        self._recognise([self._parts(key) for key in keys])
        self._find_containers(keys)
        self.splits: dict[str, list[str]] = {}
        self.outside: list[str] = []
        for path in paths:
            split, _ = self.place(path)
            (self.outside if split is None else self.splits.setdefault(split, [])).append(path)

    def place(self, path: str) -> tuple[str | None, int | None]:
        """Return the split of a path, and which of its parts says so; None where there is none."""
        key = self._key(path)
        if key not in self._places:
            says = self._says(key)
            otherwise = ("train" if self._rest_is_train else None, None)
            self._places[key] = next(((s, i) for i, prefix, s in says), otherwise)
        return self._places[key]

    def choose(self, split: str, where: str) -> tuple[list[str], bool]:
        """Return the paths of a split, and whether they are exactly the requested one.

        Raises:
            DataError: If the split does not exist.
        """
        if not self.splits:
            return self.outside, False
        name, owns_split = choose_split(self.splits, split, where)
        return self.splits[name], owns_split

    def notes(self) -> list[str]:
        """Return remarks on how the data were divided, or what looks like a split and is none."""
        if not self.splits:
            return self._look_alikes()
        notes = []
        names = {split: self._names(paths) for split, paths in sorted(self.splits.items())}
        if any(found != [split] for split, found in names.items()):
            listing = ", ".join(f"{split} is {some(found)}" for split, found in names.items())
            notes.append(f"splits: {listing}")
        if self.outside:
            count = f"{len(self.outside):,} files are" if len(self.outside) > 1 else "1 file is"
            notes.append(f"{count} left out, being in none of the splits: {some(self.outside)}")
        return notes

    def _key(self, path: str) -> str:
        """Return what decides the split of a path."""
        directory, _, name = path.rpartition("/")
        if not self._file_names:
            return directory
        return f"{directory}/{name.rpartition('.')[0] or name}".lstrip("/")

    def _parts(self, key: str) -> list[SplitName | None]:
        """Return what each part of a key says about a split."""
        names = key.split("/")
        last = len(names) - 1
        return [parse_split_name(n, self._file_names and i == last) for i, n in enumerate(names)]

    def _recognise(self, all_parts: list[list[SplitName | None]]) -> None:
        """Find the words that splits have beside their own, and whether all others are train."""
        groups: dict[str, set[str]] = {}
        plain: set[str | None] = set()
        at_top: set[str] = set()
        for parts in all_parts:
            for found in filter(None, parts):
                groups.setdefault(found.rest, set()).add(found.split)
            plain.add(next((p.split for p in parts if p and not p.rest), None))
            if parts[0] and not parts[0].rest:
                at_top.add(parts[0].split)
        self._words = {
            rest for rest, splits in groups.items() if "train" in splits and splits - {"train"}
        }
        if self._words or plain == {None}:
            return
        if None not in plain:
            self._words = {""}
        elif at_top - {"train"} and "train" not in plain:
            self._words, self._rest_is_train = {""}, True

    def _find_containers(self, keys: list[str]) -> None:
        """Find directories such as ``training_data`` that hold both ``train`` and ``test``."""
        below: dict[str, set[str]] = {}
        for key in keys:
            says = self._says(key)
            for number, (_, prefix, _) in enumerate(says):
                below.setdefault(prefix, set()).update(split for _, _, split in says[number + 1 :])
        self._containers = {p for p, found in below.items() if "train" in found and len(found) > 1}

    def _says(self, key: str) -> list[tuple[int, str, str]]:
        """Return the parts of a key that name its split: their place, path up to there, split."""
        names = key.split("/")
        found = [
            (index, "/".join(names[: index + 1]), parsed.split)
            for index, parsed in enumerate(self._parts(key))
            if parsed is not None and parsed.rest in self._words
        ]
        return [entry for entry in found if entry[1] not in self._containers]

    def _names(self, paths: Iterable[str]) -> list[str]:
        """Return what the data call the split of some paths."""
        found: dict[str, None] = {}
        for path in paths:
            _, index = self.place(path)
            names = path.split("/")
            if index is None:
                found["everything else"] = None
            elif index < len(names) - 1:
                found["/".join(names[: index + 1])] = None
            else:  # the words of train-0001.tar and train-0002.tar, not each file
                words = _WORD.findall(names[-1])
                found[next((w for w in words if w.lower() in _MEANING), names[-1])] = None
        return list(found)

    def _look_alikes(self) -> list[str]:
        """Return remarks on names that say ``test`` or so in data that are not divided."""
        found: dict[str, None] = {}
        for key in dict.fromkeys(map(self._key, self.outside)):
            names = key.split("/")
            for index, parsed in enumerate(self._parts(key)):
                if parsed is not None:
                    found["/".join(names[: index + 1])] = None
        notes = []
        if found:
            notes.append(
                f"looking like splits, but not taken as such: {some(list(found))}; "
                "call them train and test if they are"
            )
        if not self._file_names:
            notes += self._named_images()
        return notes

    def _named_images(self) -> list[str]:
        """Return a remark on images whose file names say ``train`` and ``test``."""
        examples: dict[str, str] = {}
        for path in self.outside:
            name = path.rpartition("/")[2]
            if _MAYBE.search(name) and (parsed := parse_split_name(name.rpartition(".")[0])):
                examples.setdefault(parsed.split, path)
        if "train" not in examples or len(examples) < 2:
            return []
        return [
            f"images are not divided by their own names, such as {some(list(examples.values()))}; "
            "for that, move them to directories train and test"
        ]


_MAYBE = re.compile("|".join(sorted({word[:3] for word in _MEANING} | {"held"})), re.IGNORECASE)


def choose_split(available: Iterable[str], split: str, where: str) -> tuple[str, bool]:
    """Return the data's own name of a split, and whether that split is exactly the requested one.

    If the data has no test split, ``train`` and ``test`` both come from the training split, which
    :func:`spectok.data.splits.hold_out` then divides.

    Args:
        available: The data's own names of its splits.
        split: The requested split.
        where: The data set, for messages.

    Raises:
        DataError: If the split does not exist.
    """
    available = list(available)
    if split in available and split not in ("train", "test"):
        return split, True
    meant: dict[str, str] = {}
    for name in sorted(available, key=lambda name: (name != _plain_split(name), name)):
        if (plain := _plain_split(name)) is not None:
            meant.setdefault(plain, name)
    wanted = split if split in SPELLINGS else _plain_split(split)
    test = meant.get("test", meant.get("validation"))
    if wanted in ("train", "test") and test is None and available:
        return meant.get("train", available[0]), False
    found = test if wanted == "test" else meant.get(wanted or "")
    if found is None:
        hint = did_you_mean(split, available)
        remedy = ""
        if wanted == "train":
            remedy = "; to train on what is there, give the path of that part alone"
        raise DataError(
            f"{where} has no split {split!r}{hint}; it has {', '.join(available)}{remedy}"
        )
    return found, True


def _plain_split(name: str) -> str | None:
    """Return the split that a name stands for, if it says nothing else."""
    parsed = parse_split_name(name, is_file=True)
    return parsed.split if parsed is not None and not parsed.rest else None
