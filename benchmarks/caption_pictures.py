"""A picture of what a text-to-image prior draws for captions from training, and for others.

    spectok train vqvae/emoji data.path=DIR --output runs/emoji/vqvae
    spectok train clip clip/emoji data.path=DIR --output runs/emoji/clip
    spectok train prior cat/emoji data.path=DIR --output runs/cat-emoji --tokenizer runs/emoji/vqvae
        --text runs/emoji/clip
    python benchmarks/caption_pictures.py runs/cat-emoji --data DIR

DIR holds captioned pictures as train.parquet and test.parquet. For each of a few
captions, first from the training set and then held-out ones, the picture shows the real image, its
reconstruction by the tokenizer, and drawn images. Writes ``results/emoji.png``.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from one_line import run_program

from spectok.data import DataConfig, build_dataset
from spectok.images import make_grid, to_pil
from spectok_generation import TokenPipeline

NUM_CAPTIONS, NUM_DRAWN = 12, 4
STRIDE = 23  # neighbours in the file look alike


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", help="trained prior: its folder, run or pipeline")
    parser.add_argument("--data", required=True)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--temperature", type=float, default=0.9)
    default = Path(__file__).parent / "results/emoji.png"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    pipeline: Any = TokenPipeline.from_run(arguments.model)
    how = {"guidance": arguments.guidance, "temperature": arguments.temperature}
    figure, axes = plt.subplots(2 * NUM_CAPTIONS // 3, 3, figsize=(15, NUM_CAPTIONS))
    cells = iter(axes.flat)
    for split in ("train", "test"):
        section = {"name": "parquet", "path": arguments.data, "split": split}
        section["image_size"] = pipeline.tokenizer.image_shape[1]
        dataset = build_dataset(DataConfig.model_validate(section), train=False)
        rows = [(i + 1) * STRIDE % len(dataset) for i in range(NUM_CAPTIONS)]
        captions = [dataset.captions_of(row)[0] for row in rows]
        prompts = [caption for caption in captions for _ in range(NUM_DRAWN)]
        drawn = pipeline(prompts, output_type="pt", **how).images.split(NUM_DRAWN)
        for row, caption, images in zip(rows, captions, drawn):
            real = dataset[row]["images"][None]
            with torch.no_grad():
                kept = pipeline.tokenizer.decode(pipeline.tokenizer.encode(real))
            cell = next(cells)
            cell.imshow(to_pil(make_grid(torch.cat([real, kept, images]), columns=NUM_DRAWN + 2)))
            title = textwrap.shorten(f"{'held out: ' if split == 'test' else ''}{caption}", 60)
            cell.set_title(title, fontsize=11)
            cell.set_axis_off()
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=60)
    print(f"real, kept by the tokenizer, then {NUM_DRAWN} drawn: {arguments.out}")


if __name__ == "__main__":
    run_program(main)
