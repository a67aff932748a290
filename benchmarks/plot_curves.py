"""Draw what ``curves.py`` measured: PSNR against steps.

    python benchmarks/plot_curves.py --out docs/images/curves_cifar10.png

The left half shows the whole runs; the right half the last two thirds, where the curves lie close
together. Every result in ``results/curves`` that holds a curve of the data set is drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "curves"


def main() -> None:
    """Read the results and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-name", default="cifar10", help="as the results are named")
    parser.add_argument("--out", required=True, help="picture to write")
    arguments = parser.parse_args()
    curves = {}
    for path in sorted(RESULTS.glob(f"{arguments.data_name}_*.json")):
        result = json.loads(path.read_text())
        if "curve" in result:
            curves[path.stem.removeprefix(f"{arguments.data_name}_")] = result
    if not curves:
        raise SystemExit(f"{RESULTS} holds no curve of {arguments.data_name}")
    best_last = sorted(curves, key=lambda key: -curves[key]["final"]["psnr"])
    figure, (whole, late) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for number, key in enumerate(best_last):
        points = curves[key]["curve"]
        steps, psnr = [p["step"] for p in points], [p["psnr"] for p in points]
        style = {"color": f"C{number}", "marker": "o", "markersize": 3}
        whole.plot(steps, psnr, label=f"{key}  {curves[key]['final']['psnr']:.2f} dB", **style)
        third = max(steps) / 3
        kept = [index for index, step in enumerate(steps) if step >= third]
        late.plot([steps[i] for i in kept], [psnr[i] for i in kept], **style)
    count = max(result["curve_images"] for result in curves.values())
    whole.set_ylabel(f"PSNR in dB, {count:,} test images")
    whole.legend(title="at the end, all test images", loc="lower right")
    late.set_title("the last two thirds")
    for axes in (whole, late):
        axes.set_xlabel("training steps")
        axes.grid(alpha=0.3)
    figure.savefig(arguments.out, dpi=110)
    print(arguments.out)


if __name__ == "__main__":
    main()
