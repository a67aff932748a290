"""The training curve of a run, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectok.errors import CheckpointError
from spectok.writing import whole_file

MAX_TERMS = 8
"""Terms of the loss that are drawn besides the whole of it."""


def curves_of(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Return the loss and its terms over the steps: label -> (steps, values).

    Values that are not positive are left out, since the axis is logarithmic, and so is a term that
    is all of the loss.

    Args:
        records: The lines of a run's log.
    """
    names = [name for name in records[-1] if name.startswith("loss/")][:MAX_TERMS]
    found = {}
    for name in ("loss", *names):
        points = [(r["step"], r[name]) for r in records if _is_positive(r.get(name))]
        if points:
            steps, values = map(list, zip(*points))
            if (steps, values) not in found.values():
                found[name.removeprefix("loss/")] = steps, values
    return found


def draw_curve(records: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the loss and its terms against the steps, and write the picture.

    Args:
        records: The lines of a run's log.
        path: PNG file to write.

    Returns:
        Whether there was anything to draw.

    Raises:
        CheckpointError: If the picture cannot be written.
    """
    curves = curves_of(records) if records else {}
    if not curves:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, (steps, values) in curves.items():
        marker = "." if len(steps) < 3 else None  # a line of one point would not show
        axes.plot(steps, values, label=label, linewidth=1.2, marker=marker)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())  # plain numbers, not powers of ten
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # if few decades
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path, CheckpointError) as unfinished:
        figure.savefig(unfinished, dpi=120, metadata={"Software": None})
    return True


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")
