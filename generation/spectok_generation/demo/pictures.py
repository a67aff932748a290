"""Grids and plots embedded in a page: PNGs as data URIs, plots as inline SVG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from spectok.images import make_grid, to_pil

COLORS = ("#3f7de8", "#e8743b", "#19a979", "#b35cc9", "#945ecf")  # legible on white and on black
INK = "#0a0b0c"  # stands for the page's own text colour
Line = tuple[Sequence[float], Sequence[float]]


def png_uri(images: Float[Tensor, "n c h w"], columns: int, gap: int = 2) -> str:
    """Return images laid out in rows, with transparent gaps, as a data URI.

    Args:
        images: In [-1, 1].
        columns: Images per row.
        gap: Pixels between images.
    """
    picture = to_pil(make_grid(images, columns, gap)).convert("RGB")
    opaque = make_grid(torch.zeros_like(images[:, :1]), columns, gap) < 255  # gaps are white
    picture.putalpha(to_pil(opaque.to(torch.uint8) * 255))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def plot_lines(
    lines: Mapping[str, Line], x_label: str, y_label: str, *, log_y: bool = False
) -> str:
    """Return an SVG of labelled curves.

    Args:
        lines: Label -> (x, y); one with a label ``_…`` is dotted and not in the legend.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        log_y: Logarithmic vertical axis.
    """

    def draw(axes: Any) -> None:
        colors = iter(COLORS)
        for label, (x, y) in lines.items():
            if label.startswith("_"):
                axes.plot(x, y, color=INK, linewidth=0.8, linestyle=":", label=label)
            else:
                axes.plot(x, y, color=next(colors), linewidth=1.6, label=label)
        axes.set_yscale("log" if log_y else "linear")
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=INK)

    return _svg(draw, x_label, y_label)


def plot_histograms(values: Mapping[str, Tensor], x_label: str) -> str:
    """Return an SVG of the distributions of several sets of numbers, each summing to one.

    Args:
        values: Label -> numbers.
        x_label: Name of the horizontal axis.
    """
    everything = torch.cat(list(values.values()))
    edges = torch.linspace(0, float(everything.max()), 41)

    def draw(axes: Any) -> None:
        for color, (label, numbers) in zip(COLORS, values.items()):
            share = torch.histogram(numbers.float().cpu(), edges).hist / len(numbers)
            axes.stairs(share, edges, color=color, fill=True, alpha=0.25)
            axes.stairs(share, edges, color=color, linewidth=1.4, label=label)
        axes.legend(frameon=False, labelcolor=INK)

    return _svg(draw, x_label, "share")


def _svg(draw: Callable[[Any], None], x_label: str, y_label: str) -> str:
    """Draw on empty axes; return an SVG element whose ink has the text colour of the page."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "spectok", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.tick_params(which="both", color=INK, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(INK)
        draw(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r' (width|height)="[0-9.]+pt"', "", text, count=2)
