"""Draw what ``curves.py`` measured, against steps and against seconds, and tell the order.

    python benchmarks/plot_curves.py --out docs/images/curves_cifar10.png
    python benchmarks/plot_curves.py --set mnist --out docs/images/curves_mnist.png

Every result in ``results/curves`` that holds a curve of the data set is drawn. Seconds are steps
times the seconds per step of ``SET_cost.json`` (``curves.py --cost``), which are timed in turns on
one core: the clock of a long run tells what else ran. Prints the order at equal steps and at equal
seconds as a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from one_line import run_program

RESULTS = Path(__file__).parent / "results" / "curves"
MEASURES = {"psnr": "PSNR in dB", "ssim": "SSIM"}
SHARES = (0.1, 0.3, 1.0)  # of the run at which the order is told


def main() -> None:
    """Read the results, draw them and print the order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="cifar10", help="data set, as the results are named")
    parser.add_argument("--out", required=True, help="picture to write")
    arguments = parser.parse_args()
    curves = {}
    for path in sorted(RESULTS.glob(f"{arguments.set}_*.json")):
        result = json.loads(path.read_text())
        if "curve" in result:
            curves[path.stem.removeprefix(f"{arguments.set}_")] = result
    cost_file = RESULTS / f"{arguments.set}_cost.json"
    if not curves or not cost_file.is_file():
        raise SystemExit(f"{RESULTS} lacks curves or costs of {arguments.set}: see curves.py")
    costs = json.loads(cost_file.read_text())["seconds_per_step"]
    curves = dict(sorted(curves.items(), key=lambda item: -item[1]["final"]["psnr"]))
    draw(curves, costs, arguments.out)
    print(order(curves, costs))
    print(arguments.out)


def draw(curves: dict[str, Any], costs: dict[str, float], out: str) -> None:
    """Draw PSNR and SSIM (rows) against steps and minutes of one core (columns)."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharey="row", constrained_layout=True)
    count = max(result["curve_images"] for result in curves.values())
    for row, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        early = []
        for number, (key, result) in enumerate(curves.items()):
            steps = np.array([point["step"] for point in result["curve"]])
            values = [point[measure] for point in result["curve"]]
            early.append(np.interp(steps[-1] / 10, steps, values))
            label = f"{key}  {result['final']['psnr']:.2f} dB"
            for axis, scale in zip(row, (1.0, costs[key] / 60), strict=True):
                axis.plot(
                    steps * scale, values, label=label, color=f"C{number}", marker="o", markersize=3
                )
        row[0].set_ylabel(f"{title}, {count:,} test images")
        row[0].set_ylim(bottom=min(early))
        for axis in row:
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    title = "at the end, all test images"
    figure.legend(handles, labels, loc="outside upper center", ncols=4, title=title)
    axes[1][0].set_xlabel("training steps")
    axes[1][1].set_xlabel("minutes of one processor core, log scale")
    for axis in (axes[0][1], axes[1][1]):
        axis.set_xscale("log")
        axis.set_xticks([3, 10, 30, 100], labels=["3", "10", "30", "100"])
        axis.minorticks_off()
    figure.savefig(out, dpi=110)


def order(curves: dict[str, Any], costs: dict[str, float]) -> str:
    """Return a table of PSNR at equal steps, and at equal seconds of the cheapest run."""
    last = {key: result["curve"][-1]["step"] for key, result in curves.items()}
    shortest = min(last[key] * costs[key] for key in curves)
    steps = [round(min(last.values()) * share) for share in SHARES]
    seconds = [shortest * share for share in SHARES]
    titles = [f"{step:,} steps" for step in steps] + [f"{second:,.0f} s" for second in seconds]
    lines = [f"| PSNR in dB | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for key, result in curves.items():
        where = [*steps, *(second / costs[key] for second in seconds)]
        at = [point["step"] for point in result["curve"]]
        psnr = [point["psnr"] for point in result["curve"]]
        # a step before the first checkpoint has no measurement
        cells = [f"{np.interp(step, at, psnr):.2f}" if step >= at[0] else "–" for step in where]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
