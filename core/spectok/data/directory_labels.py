"""Labels from the directories that images are in, in folders and in shards alike."""

from __future__ import annotations

import numpy as np

from spectok.data.listing import composed
from spectok.data.split_names import Division


def directory_labels(
    division: Division, names: list[str]
) -> tuple[np.ndarray | None, list[str] | None, list[str]]:
    """Return labels, class names and notes from the directories that directly hold the images.

    Args:
        division: Which images belong to which split.
        names: The relative paths of the images of one of them.

    Classes are numbered over all splits, so that a split that lacks a class agrees with the others.
    Where nothing is below the directories of the splits, as in ``cats/train/1.png``, the classes
    are above them.
    """
    everywhere = [name for split in division.splits.values() for name in split] or names
    above = not any(_class_directory(division, name, above=False) for name in everywhere)
    classes = {name: _class_directory(division, name, above) for name in everywhere}
    class_names = sorted({found for found in classes.values() if found})
    distinct = {split: {classes[n] for n in part} for split, part in division.splits.items()}
    if len(class_names) < 2 or (above and max(map(len, distinct.values()), default=2) < 2):
        return None, None, []
    if loose := [name for name in names if not classes[name]]:
        note = f"no labels: {len(loose):,} images lie outside class directories, such as {loose[0]}"
        return None, None, [note]
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[classes[name]] for name in names], np.int64), class_names, []


def _class_directory(division: Division, name: str, above: bool) -> str:
    """Return the directory that says the class of an image; empty if there is none."""
    directories, (_, place) = name.split("/")[:-1], division.place(name)
    if place is not None:
        directories = directories[:place] if above else directories[place + 1 :]
    return composed(directories[-1]) if directories else ""
