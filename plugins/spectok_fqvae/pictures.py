"""Usage and unit information of codes as curves (FQ-VAE, Fig. 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Num
from matplotlib.figure import Figure
from torch import Tensor

from spectok_fqvae.analysis import CodeStudy

SMALL = 1e-2  # share of the information axis that is linear around zero, where some are below


def draw_codes(studies: Mapping[str, CodeStudy]) -> Figure:
    """Draw one usage curve per model, and one information curve if that was measured.

    Each curve sorts the codes by its own quantity, largest first. The horizontal axis is the share
    of all codes, so that codebooks of different sizes compare.

    Args:
        studies: Name of a model -> its codes.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, study) in enumerate(studies.items()):
        usage = study.usage.double() / study.usage.double().mean()
        left.plot(*descending(usage), color=f"C{number}", label=name)
        if study.information is not None:
            right.plot(*descending(study.information), color=f"C{number}", label=name)
    left.axhline(1, color="0.6", linewidth=0.8, linestyle=":")  # equal use of all codes
    left.set(ylabel="choices / mean over all codes", title="usage")
    left.set_yscale("symlog", linthresh=1, subs=(2, 5))  # unused codes are at zero
    left.set_ylim(bottom=0)
    for pick in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        pick("{x:g}")
    right.set(ylabel="growth of the mean squared error", title="information of single codes")
    known = [study.information for study in studies.values() if study.information is not None]
    if all(information.min() > 0 for information in known):
        right.set_yscale("log")
    else:
        right.set_yscale("symlog", linthresh=SMALL * right.get_ylim()[1])
    for axes in (left, right):
        axes.set(xlabel="share of codes, largest first", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize="small")
    return figure


def descending(values: Num[Tensor, "n"]) -> tuple[list[float], list[float]]:
    """Return the values, largest first, and before them the share of values up to each."""
    count = len(values)
    places = (torch.arange(count) + 0.5) / count
    return places.tolist(), values.sort(descending=True).values.tolist()
