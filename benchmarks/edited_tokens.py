"""How many tokens a small edit of an image moves, and how far from it, as in QG-VAE's Fig. 12.

    python benchmarks/edited_tokens.py qgvae/cifar10 vqvae/cifar10 --data DIR

QG-VAE's paper edits 20×20 of 128×128 pixels. Here a square of as large a share of each side (5 of
32 pixels), at a random place, is replaced by the same square of the next test image. Both images
are encoded, and tokens that differ are counted. ``spectok changes`` shows that for one pair.
Results go into ``results/edited_tokens.json``; ``--result`` is for those of other models or images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from alike import load_alike
from kept import check_free
from one_line import positive, run_program
from torch import Tensor

from spectok import ImageTokenizer
from spectok.errors import ConfigError
from spectok.evaluation.protocol import make_protocol
from spectok.machine import describe_machine
from spectok_fqvae.cli import test_images

RESULT = Path(__file__).parent / "results" / "edited_tokens.json"
SHARE = 20 / 128
BATCH_SIZE = 64


def main() -> None:
    """Edit the same images for each model, and count."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="+", help="trained models of one size of images")
    parser.add_argument("--data", required=True, help="folder with the data set as parquet files")
    parser.add_argument("--images", type=positive, default=1000, help="test images")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.images == 1:
        raise ConfigError("--images 1: each image gets a part of another one; give two or more")
    command = f"python benchmarks/edited_tokens.py {' '.join(arguments.models)} --data DIR"
    if arguments.images != parser.get_default("images"):
        command += f" --images {arguments.images}"
    check_free(arguments.result, command)
    torch.set_num_threads(1)
    models = load_alike(arguments.models)
    dataset = test_images(arguments.data, next(iter(models.values())), arguments.images)
    images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
    side = round(SHARE * images.shape[-1])
    edited = edit(images, side)
    found = {name: count(model, images, edited) for name, model in models.items()}
    result = {
        "command": command,
        "images": len(images),
        "side_of_edit": side,
        "protocol": make_protocol(dataset, "float32", 0, {}, side_of_edit=side),
        "machine": describe_machine(),
        "models": found,
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    for name, numbers in found.items():
        print(name, json.dumps(numbers))


def edit(images: Tensor, side: int) -> Tensor:
    """Replace a square of each image, at a place drawn with seed 0, by that of the next image.

    Args:
        images: (B, C, H, W).
        side: Of the square, in pixels.
    """
    height, width = images.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    top = torch.randint(height - side + 1, (len(images), 1, 1, 1), generator=generator)
    left = torch.randint(width - side + 1, (len(images), 1, 1, 1), generator=generator)
    row, column = torch.arange(height)[:, None], torch.arange(width)
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    return torch.where(inside, images.roll(-1, 0), images)


@torch.no_grad()
def count(model: ImageTokenizer, images: Tensor, edited: Tensor) -> dict[str, Any]:
    """Return how many tokens differ: their mean, and how the images are spread."""
    differ = torch.cat(
        [
            (model.encode(before) != model.encode(after)).sum(1)
            for before, after in zip(images.split(BATCH_SIZE), edited.split(BATCH_SIZE))
        ]
    ).double()
    tokens = model.token_spec.num_tokens
    return {
        "tokens": tokens,
        "changed": differ.mean().item(),
        "share": differ.mean().item() / tokens,
        "tenth_and_nine_tenths": torch.quantile(differ, torch.tensor([0.1, 0.9]).double()).tolist(),
    }


if __name__ == "__main__":
    run_program(main)
