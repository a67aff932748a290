"""The data report: what is in a data set, to be read before the first training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spectok.errors import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from spectok.data.rows import Captions, Problem

_SHOWN = 5


@dataclass(frozen=True)
class DataReport:
    """Counts and findings of one split.

    Args:
        name: Data set and split, such as ``"digits/train"``.
        count: Number of images that are served.
        image_shape: (C, H, W) of the images as served.
        sizes: How many images have each original (width, height).
        modes: How many images have each original mode (``L`` grey, ``RGB``, ``RGBA`` …).
        unreadable: Images and shards that cannot be read, with the reason.
        checked: ``"decoded"``: every image was decoded; ``"headers"``: there are too many to decode
            at the start, so only headers and file ends were read.
        labels: How many images each class has, by class name. None: no labels.
        captions: Numbers of captioned images, captions, and words per caption. None: no captions.
        notes: Further remarks, one sentence each.
    """

    name: str
    count: int
    image_shape: tuple[int, int, int]
    sizes: dict[tuple[int, int], int]
    modes: dict[str, int]
    unreadable: list[Problem] = field(default_factory=list)
    checked: Literal["decoded", "headers"] = "decoded"
    labels: dict[str, int] | None = None
    captions: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        return {
            "name": self.name,
            "count": self.count,
            "image_shape": list(self.image_shape),
            "sizes": {f"{w}x{h}": n for (w, h), n in self.sizes.items()},
            "modes": self.modes,
            "unreadable": [{"name": p.name, "reason": p.reason} for p in self.unreadable],
            "checked": self.checked,
            "labels": self.labels,
            "captions": self.captions,
            "notes": self.notes,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return the report as (heading, text) pairs."""
        channels, height, width = self.image_shape
        kind = "grey" if channels == 1 else "RGB"
        lines = [("images", f"{self.count:,}, served as {width}×{height} {kind}")]
        lines.append(("sizes", _histogram({f"{w}×{h}": n for (w, h), n in self.sizes.items()})))
        lines.append(("modes", _histogram(self.modes)))
        if self.labels is not None:
            lines.append(("labels", _describe_labels(self.labels)))
        if self.captions is not None:
            lines.append(("captions", _describe_captions(self.captions)))
        how = "every image decoded" if self.checked == "decoded" else "headers and file ends"
        lines.append(("checked", how))
        lines.append(("unreadable", describe_problems(self.unreadable) or "none"))
        notes = [("note", note) for note in self.notes]
        return [(heading, one_line(text)) for heading, text in lines + notes]

    def __str__(self) -> str:
        body = [f"  {heading:<10} {text}" for heading, text in self.lines()]
        return "\n".join([f"data {self.name}", *body])

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"data {self.name}", show_header=False, title_justify="left")
        for heading, text in self.lines():
            alarming = heading == "unreadable" and self.unreadable
            table.add_row(heading, escape(text), style="bold red" if alarming else None)
        return table


def describe_problems(problems: list[Problem], shown: int = _SHOWN) -> str:
    """Return ``"3: a.png (reason), b.png (reason), … and 1 more"``, or an empty string."""
    if not problems:
        return ""
    listing = ", ".join(f"{one_line(p.name)} ({one_line(p.reason)})" for p in problems[:shown])
    more = f", … and {len(problems) - shown:,} more" if len(problems) > shown else ""
    return f"{len(problems):,}: {listing}{more}"


def count_labels(
    labels: np.ndarray | None, num_classes: int | None, class_names: list[str] | None
) -> dict[str, int] | None:
    """Return how many images each class has, by name."""
    if labels is None:
        return None
    counts = np.bincount(labels[labels >= 0], minlength=num_classes or 0)
    names = class_names or [str(k) for k in range(len(counts))]
    return {name: int(count) for name, count in zip(names, counts)}


def count_captions(captions: Sequence[Captions] | None) -> dict[str, float] | None:
    """Return how many images have captions, and the number and lengths of the captions."""
    if captions is None:
        return None
    words = [len(text.split()) for texts in captions for text in texts]
    return {
        "images": sum(bool(texts) for texts in captions),
        "captions": len(words),
        "mean_words": round(float(np.mean(words)), 2) if words else 0.0,
        "max_words": max(words, default=0),
    }


def _histogram(counts: dict[str, int]) -> str:
    common = Counter(counts).most_common()
    text = ", ".join(f"{key} ({n:,})" for key, n in common[:_SHOWN])
    return text + (f", … {len(common) - _SHOWN} more" if len(common) > _SHOWN else "")


def _describe_labels(labels: dict[str, int]) -> str:
    if not labels:
        return "none"
    least, most = min(labels, key=labels.__getitem__), max(labels, key=labels.__getitem__)
    spread = f"{labels[least]:,} ({least}) to {labels[most]:,} ({most}) images each"
    return f"{len(labels):,} classes, {spread}"


def _describe_captions(captions: dict[str, float]) -> str:
    return (
        f"{captions['captions']:,} on {captions['images']:,} images, "
        f"{captions['mean_words']:.1f} words on average, {captions['max_words']:,} at most"
    )
