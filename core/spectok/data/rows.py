"""What a data set source returns: columns of images, labels and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Captions = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """An image or shard that cannot be read.

    Args:
        name: File name, or place in the data set.
        reason: Why, in a few words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """The images of one split in their fixed order, not yet decoded.

    Args:
        images: One reference per image, of any kind that
            :func:`spectok.data.decode.open_image` opens: a path, encoded bytes, the
            ``{"bytes", "path"}`` of the ``datasets`` library, a uint8 array (H, W) or (H, W, C), or
            a PIL image.
        names: What messages call each image. None: ``row 17``.
        labels: int64 class of each image, shape (N,).
        captions: The captions of each image; one image may have several.
        class_names: Name of each class.
        num_classes: Number of classes, if they have no names. None: the largest label plus one.
        problems: What the source could not read at all.
        notes: Further remarks for the data report, one sentence each.
        owns_split: Whether this is the requested split. False: it is the only split of the data,
            and a part of it has to be held out.
    """

    images: Sequence[Any]
    names: Sequence[str] | None = None
    labels: np.ndarray | None = None
    captions: Sequence[Captions] | None = None
    class_names: list[str] | None = None
    num_classes: int | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    owns_split: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return what messages call an image."""
        return self.names[index] if self.names is not None else f"row {index}"

    def count_classes(self) -> int | None:
        """Return the number of classes; None without labels."""
        if self.labels is None:
            return None
        known = self.num_classes or len(self.class_names or [])
        return known or int(self.labels.max(initial=-1)) + 1

    def select(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """Return some of the rows, in the given order; images are not decoded."""
        chosen = [int(i) for i in indices]
        return replace(
            self,
            images=_Selection(self.images, chosen),
            names=[self.name(i) for i in chosen],
            labels=None if self.labels is None else self.labels[chosen],
            captions=None if self.captions is None else [self.captions[i] for i in chosen],
        )


class _Selection(Sequence[Any]):
    """Some items of a sequence, fetched on demand."""

    def __init__(self, items: Sequence[Any], indices: list[int]):
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.indices[index]]
