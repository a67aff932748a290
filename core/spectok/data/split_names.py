"""Recognise splits by name: ``train``, ``Test``, ``training_set``, ``data/val``, ``train-01.tar``.

One rule for directories, tables and shards: among the parts of all paths, those that say ``train``
and those that say ``test`` or ``validation`` (in any usual spelling, and with the same rest, such
as ``seg_train`` and ``seg_test``) divide the data. A class called ``train`` beside ``bus`` and
``car`` does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spectok.data.listing import some
from spectok.data.split_column import SplitColumn
from spectok.data.split_words import (
    FILLER,
    LOOK_ALIKES,
    MEANING,
    QUALIFIERS,
    SHORT,
    SPELLINGS,
    WORD,
    SplitName,
    parse_split_name,
)
from spectok.errors import DataError, did_you_mean


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
        self._file_names, self._rest_is_train, self._short = file_names, False, False
        self._accepted: set[SplitName] = set()
        self._containers: set[str] = set()
        self._places: dict[str, tuple[str | None, int | None]] = {}
        keys = list(dict.fromkeys(map(self._key, paths)))
        self._recognise(keys)
        self._find_containers(keys)
        self._paths, self._declared, self._column = paths, dict[str, str | None](), ""
        self._divide()

    @property
    def in_directories(self) -> bool:
        """Whether names divide the data, and not a column alone."""
        return bool(self._accepted)

    def _divide(self) -> None:
        self.splits: dict[str, list[str]] = {}
        self.outside: list[str] = []
        for path in self._paths:
            split, _ = self.place(path)
            (self.outside if split is None else self.splits.setdefault(split, [])).append(path)

    def declare(self, column: SplitColumn, paths: Sequence[str], where: str) -> None:
        """Divide paths by a column too, where their own names say nothing.

        Args:
            column: What a table says of each path.
            paths: The path of each row; several rows may be of one path.
            where: The table, for messages.

        Raises:
            DataError: If a path has two splits.
        """
        places = [self.place(path) for path in paths]
        known = [split if index is not None else None for split, index in places]
        column.check(known, lambda row: paths[row], where)
        self._column = column.name
        for path, (_, index), split in zip(paths, places, column.splits):
            if index is None and self._declared.setdefault(path, split) != split:
                raise DataError(
                    f"{where}: column {column.name!r} says both {self._declared[path] or 'nothing'}"
                    f" and {split or 'nothing'} of {path}; correct one of them"
                )
        self._divide()

    def place(self, path: str) -> tuple[str | None, int | None]:
        """Return the split of a path, and which of its parts says so; None where there is none."""
        if path in self._declared:
            return self._declared[path], None
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

    def _parts(self, key: str, short: bool = False) -> list[SplitName | None]:
        """Return what each part of a key says about a split."""
        names = key.split("/")
        last, short = len(names) - 1, short or self._short
        return [
            parse_split_name(n, self._file_names and i == last, short) for i, n in enumerate(names)
        ]

    def _recognise(self, keys: list[str]) -> None:
        """Find the names of splits, and whether all others are train.

        Short words such as ``tr`` and ``va`` count only if both a training and another part are
        there and nothing else is: beside ``de`` and ``us`` they are countries.
        """
        self._accepted = self._accept(keys)
        if not self._accepted and all(any(self._parts(key, short=True)) for key in keys):
            self._short = True
            self._accepted = self._accept(keys)
            if self._rest_is_train or len({split for split, _ in self._accepted}) < 2:
                self._short, self._rest_is_train, self._accepted = False, False, set()

    def _accept(self, keys: list[str]) -> set[SplitName]:
        """Return the names of splits."""
        all_parts = [self._parts(key) for key in keys]
        top = _num_common(keys)
        groups: dict[str, set[str]] = {}
        plain: set[str | None] = set()
        at_top: set[str] = set()
        for parts in all_parts:
            for found in filter(None, parts):
                groups.setdefault(found.rest, set()).add(found.split)
            plain.add(next((p.split for p in parts if p and not p.rest), None))
            at_top |= {p.split for p in parts[top : top + 1] if p and not p.rest}
        qualified = {
            SplitName(split, rest)
            for rest in groups.keys() & QUALIFIERS
            for split in groups[rest] - {"train"}
        }
        rests = {r for r, splits in groups.items() if "train" in splits and splits - {"train"}}
        if not rests and None not in plain:
            rests = {""}
        elif not rests and at_top - {"train"} and "train" not in plain:
            rests, self._rest_is_train = {""}, True
        elif not rests and "train" in plain and qualified:
            rests = {""}
        accepted = {SplitName(split, rest) for rest in rests for split in groups[rest]}
        if "" in rests:  # beside train and val, test_unlabeled is the test part
            taken = set() if self._rest_is_train else groups[""]
            accepted |= {name for name in qualified if name.split not in taken}
        return accepted

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
            if parsed is not None and parsed in self._accepted
        ]
        return [entry for entry in found if entry[1] not in self._containers]

    def _names(self, paths: Iterable[str]) -> list[str]:
        """Return what the data call the split of some paths."""
        found: dict[str, None] = {}
        for path in paths:
            _, index = self.place(path)
            names = path.split("/")
            if path in self._declared:
                found[f"those of column {self._column}"] = None
            elif index is None:
                found["everything else"] = None
            elif index < len(names) - 1:
                found["/".join(names[: index + 1])] = None
            else:  # the words of train-0001.tar and train-0002.tar, not each file
                words = WORD.findall(names[-1])
                known = MEANING | SHORT if self._short else MEANING
                found[next((w for w in words if w.lower() in known), names[-1])] = None
        return list(found)

    def _look_alikes(self) -> list[str]:
        """Return remarks on names that say ``test`` or so in data that are not divided."""
        found: dict[str, None] = {}
        shorts: dict[str, str] = {}
        stems: dict[str, str] = {}
        keys = list(dict.fromkeys(map(self._key, self.outside)))
        says_all = all(any(self._parts(key)) for key in keys)
        for key in keys:
            names = key.split("/")
            parsed, short = self._parts(key), self._parts(key, short=True)
            for index, name in enumerate(names):
                path = "/".join(names[: index + 1])
                stems.setdefault(_stem(name), path)
                if (split := parsed[index]) is not None:
                    if " " not in name or says_all or split.rest in ("", *QUALIFIERS):
                        found[path] = None  # but not test tubes beside beakers
                elif (either := short[index]) is not None and not either.rest:
                    shorts.setdefault(either.split, path)
        if "train" in shorts and len(shorts) > 1:
            found |= dict.fromkeys(shorts.values())
        for pair in LOOK_ALIKES:
            if stems.keys() >= {*pair}:
                found |= {stems[word]: None for word in pair}
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


_MAYBE = re.compile("|".join(sorted({word[:3] for word in MEANING} | {"held"})), re.IGNORECASE)


def _num_common(keys: Sequence[str]) -> int:
    """Return how many directories all keys begin with, such as the one that an archive holds."""
    count = 0
    for names in zip(*(key.split("/") for key in keys)):
        if len(set(names)) > 1:
            break
        count += 1
    return count


def _stem(name: str) -> str:
    """Return the words of a name that say something, in lower case."""
    words = [word.lower() for word in WORD.findall(name)]
    return " ".join(word for word in words if not re.fullmatch(FILLER, word))


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
