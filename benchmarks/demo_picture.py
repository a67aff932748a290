"""The picture of the README: what a finished ``spectok demo`` has made.

    spectok demo
    python benchmarks/demo_picture.py spectok-demo --out docs/images/demo.png

Held-out digits, one of each class, through the tokens of each tokenizer and back; the same decoded
from their first tokens alone; and the samples that the demo has drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from one_line import run_program
from PIL import Image
from torch import Tensor

from spectok import ImageTokenizer, load_tokenizer
from spectok.images import to_float, to_uint8

LENGTHS = (0, 1, 2, 4, 8, 16)
TITLE = {"fontsize": 10, "fontweight": "bold", "loc": "left"}


def show_rows(axis: Any, rows: dict[str, Tensor], title: str) -> None:
    """Show each row of grey images (N, 1, H, W) beside its name."""
    height, width = next(iter(rows.values())).shape[-2:]
    lines = [
        np.pad(
            to_uint8(images)[:, 0].permute(1, 0, 2).reshape(height, -1).numpy(),
            ((1, 1), (0, 0)),
            constant_values=255,
        )
        for images in rows.values()
    ]
    whole = np.concatenate(lines)
    whole[:, ::width] = 255  # a line between images
    axis.imshow(whole, cmap="gray", interpolation="nearest")
    places = [(height + 2) * row + (height + 2) / 2 for row in range(len(rows))]
    axis.set_yticks(places, list(rows), fontsize=8)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title, **TITLE)


@torch.no_grad()
def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    given = parser.parse_args()
    files = sorted((given.demo / "images").glob("class-*.png"))
    pictures = [np.asarray(Image.open(file).convert("L")) for file in files]
    images = to_float(torch.tensor(np.stack(pictures))[:, None])
    models: dict[str, ImageTokenizer] = {
        name: load_tokenizer(given.demo / "models" / name) for name in ("qgvae", "vqvae")
    }
    back = {"held-out digits": images}
    for name, model in models.items():
        shape = "×".join(map(str, model.token_spec.levels[0].shape))
        back[f"{name}, {shape} tokens"] = model.decode(model.encode(images))
    qgvae, bits = models["qgvae"], models["qgvae"].token_spec.bits_per_image
    tokens = qgvae.encode(images)
    first = {
        f"{length} token{'s' * (length != 1)}": qgvae.decode(tokens, num_tokens=length)
        for length in LENGTHS
    }
    figure = plt.figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.3, 1])
    above, below = left.subplots(2, 1, height_ratios=[len(back), len(first)])
    show_rows(above, back, f"Through the tokens and back, {bits:g} bits per image")
    show_rows(below, first, "Decoded from the first tokens alone (qgvae)")
    axis = right.subplots()
    axis.imshow(Image.open(given.demo / "samples.png"), cmap="gray", interpolation="nearest")
    axis.set_axis_off()
    axis.set_title("New digits, drawn from a prior of the tokens", **TITLE)
    figure.savefig(given.out, dpi=100)
    print(given.out)


if __name__ == "__main__":
    run_program(main)
