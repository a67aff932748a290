"""Splits made of links to directories: ``train/cat -> ../all/cat``.

Each directory is read once, under its own name or that of the first link to it. Where that name is
in no split, but another link to the directory is, its files go by the name of that link.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from spectok.data.listing import Listing, some
from spectok.data.split_names import Division
from spectok.errors import DataError

_MOST_NAMES = 1000
_MOST_LINKS = 4


def rename_by_links(listing: Listing, files: list[str], file_names: bool = False) -> list[str]:
    """Return files by their names in splits, where links lead there from a split.

    Args:
        listing: The files below a directory. Those beside the given ones are renamed too.
        files: Those of them that are divided into splits.
        file_names: Whether they may be named after splits.

    Raises:
        DataError: If a directory is linked from ``train`` and from another split, and is itself
            not in ``train``.
    """
    links = _useful_links(listing.passed_over)
    if not links:
        return files
    directories = dict.fromkeys(map(_directory, files))
    others = {d: list(islice(_other_names(d, links), _MOST_NAMES)) for d in directories}
    linked = [_join(d, f) for f in files for d, _ in others[_directory(f)]]
    division = Division([*files, *linked], file_names)
    can_train = any(division.place(file)[0] == "train" for file in files)
    renamed: dict[str, str] = {}
    used: dict[str, str] = {}
    for file in files:
        own, place = division.place(file)
        found = [(d, link, division.place(_join(d, file))) for d, link in others[_directory(file)]]
        inside = [(d, link, split) for d, link, (split, index) in found if index is not None]
        splits = {split for *_, split in inside} | ({own} if place is not None else set())
        if len(splits) > 1:
            names = [_directory(file)] if place is not None else []
            names += [d for d, *_ in inside]
            _tell(listing, names, trouble="train" in splits and (place is None or not can_train))
        if place is None and inside:
            renamed[_directory(file)], link, _ = inside[0]
            used[link] = listing.passed_over[link] or ""
    return _rename(listing, files, renamed, used) if renamed else files


def _useful_links(passed_over: dict[str, str | None]) -> dict[str, list[str]]:
    """Return the links to each directory, except those that lead to what holds them."""
    links: dict[str, list[str]] = {}
    for link, target in passed_over.items():
        if target and not link.startswith(f"{target}/"):
            links.setdefault(target, []).append(link)
    return links


def _other_names(
    directory: str, links: dict[str, list[str]], taken: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Yield the other names of a directory, each with the last link in it."""
    parts = directory.split("/")
    for count in range(len(parts), 0, -1):
        for link in links.get("/".join(parts[:count]), ()):
            if link not in taken and len(taken) < _MOST_LINKS:
                name = "/".join([link, *parts[count:]])
                yield name, link
                yield from _other_names(name, links, (*taken, link))


def _tell(listing: Listing, names: list[str], trouble: bool) -> None:
    """Report a directory in several splits; refuse it if it cannot be told which is meant."""
    told = f"{' and '.join(names[:3])} are the same directory, by links"
    if trouble:
        raise DataError(
            f"{listing.root}: {told}; no image may be in train and in another split, so link it "
            "from one of them"
        )
    if told not in listing.remarks:
        listing.remarks.append(told)


def _rename(
    listing: Listing, files: list[str], renamed: dict[str, str], used: dict[str, str]
) -> list[str]:
    """Give all files of some directories the names that they have by links."""
    for link in used:
        listing.passed_over.pop(link)
    what = "directories go by the names" if len(used) > 1 else "directory goes by the name"
    told = some([f"{link} is {target}" for link, target in used.items()])
    listing.remarks.append(f"{len(used):,} linked {what} in their splits: {told}")
    new_names = {
        file: _join(renamed[_directory(file)], file)
        for file in listing.files
        if _directory(file) in renamed
    }
    listing.renamed |= new_names
    listing.files = sorted(new_names.get(file, file) for file in listing.files)
    return sorted(new_names.get(file, file) for file in files)


def _directory(file: str) -> str:
    return file.rpartition("/")[0]


def _join(directory: str, file: str) -> str:
    return f"{directory}/{file.rpartition('/')[2]}"
