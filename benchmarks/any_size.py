"""Photographs at their own sizes: a tokenizer trained on small crops, on whole images and on tiles.

    spectok train vqvae --data photos --output runs/vqvae-photos tokenizer.image_size=32 \
        tokenizer.channels=64 train.batch_size=32 train.steps=1500 train.learning_rate=1e-3 \
        train.lr_schedule=cosine train.warmup_steps=50 train.save_every=1500
    python benchmarks/any_size.py runs/vqvae-photos

or a quantizer in the latents of an autoencoder that was trained on the same crops:

    python benchmarks/small_autoencoder.py --data photos --steps 220 --batch-size 8 \
        --out runs/photos-autoencoder
    spectok train latentvq --data photos --output runs/latentvq-photos tokenizer.image_size=32 \
        tokenizer.autoencoder=runs/photos-autoencoder train.batch_size=32 train.steps=1000 \
        train.learning_rate=1e-3
    python benchmarks/any_size.py runs/latentvq-photos --name any_size_latentvq

The images are the parts of the nine photographs of ``photos`` from which no training crop is.
Seconds are those of the processor, of one thread, that encoding and decoding all of them take: the
median of three rounds in turns, given as multiples of those of whole images. Results go into
``results/NAME.json``, and details of three photographs into ``results/NAME.png``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from one_line import run_program
from torch import Tensor

from spectok import ImageTokenizer
from spectok.data import DataConfig, OriginalImages, build_originals
from spectok.evaluation import Sizing, evaluate_originals
from spectok.images import enlarge, save_grid
from spectok.loading import load_trained
from spectok.machine import describe_machine
from spectok.modeling import model_fingerprint

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "whole": Sizing(),
    "tiles of 32, overlap 0": Sizing(32, 0),
    "tiles of 32, overlap 8": Sizing(32, 8),
    "tiles of 64, overlap 0": Sizing(64, 0),
    "tiles of 64, overlap 16": Sizing(64, 16),
    "tiles of 128, overlap 0": Sizing(128, 0),
    "tiles of 128, overlap 32": Sizing(128, 32),
}
SHOWN = {"coffee": (150, 0), "chelsea": (100, 0), "china": (200, 60)}
"""Photograph -> top and left of the detail that is shown."""
DETAIL, ENLARGED = 96, 2
ROUNDS = 3


def main() -> None:
    """Measure every way, and draw three details."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", help="folder of the trained tokenizer or of its run")
    parser.add_argument("--name", default="any_size", help="of the results")
    arguments = parser.parse_args()
    model = arguments.model
    torch.set_num_threads(1)
    tokenizer = load_trained(model)
    config = DataConfig.model_validate({"name": "photos", "split": "test"})
    photos = build_originals(config, tokenizer.image_shape[0])
    seconds = {name: [] for name in WAYS}
    for name in [next(iter(WAYS)), *(ROUNDS * list(WAYS))]:
        seconds[name].append(seconds_of(tokenizer, photos, WAYS[name]))
    seconds["whole"].pop(0)  # to warm up
    ways = {}
    for name, sizing in WAYS.items():
        found = evaluate_originals(tokenizer, photos, sizing)
        for key in ("machine", "parameters", "levels", "seconds", "not_measured"):
            found.pop(key)
        ratio = statistics.median(seconds[name]) / statistics.median(seconds["whole"])
        ways[name] = {"seconds": seconds[name], "seconds_as_whole": ratio, **found}
        print(f"{name:26}", *(f"{n} {v:.4f}" for n, v in found["metrics"].items()), f"{ratio:.2f}")
    report = {
        "command": f"python benchmarks/any_size.py {model} --name {arguments.name}",
        "weights": model_fingerprint(tokenizer),
        "config": {k: v for k, v in dict(tokenizer.config).items() if not k.startswith("_")},
        "training": json.loads(Path(model, "log.jsonl").read_text().splitlines()[-1]),
        "ways": ways,
        "machine": describe_machine(),
    }
    RESULTS.joinpath(f"{arguments.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(tokenizer, photos, RESULTS / f"{arguments.name}.png")


def seconds_of(tokenizer: ImageTokenizer, photos: OriginalImages, way: Sizing) -> float:
    """Return the seconds of the processor that all photographs take."""
    images = [photos[index]["images"][None] for index in range(len(photos))]
    begin = time.process_time()
    for image in images:
        tokenizer.reconstruct(image, tile=way.tile, overlap=way.overlap)
    return time.process_time() - begin


def draw(tokenizer: ImageTokenizer, photos: OriginalImages, picture: Path) -> None:
    """Save details: original, whole, tiles of 32 without overlap, and with it."""
    rows: list[Tensor] = []
    names = [photos.name_of(index) for index in range(len(photos))]
    for name, (top, left) in SHOWN.items():
        image = photos[names.index(name)]["images"][None]
        ways = [{}, {"tile": 32, "overlap": 0}, {"tile": 32, "overlap": 8}]
        shown = [image, *(tokenizer.reconstruct(image, **way) for way in ways)]
        rows += [one[0, :, top : top + DETAIL, left : left + DETAIL] for one in shown]
    details = torch.stack(rows).repeat_interleave(ENLARGED, -1).repeat_interleave(ENLARGED, -2)
    save_grid(enlarge(details), picture, columns=4)


if __name__ == "__main__":
    run_program(main)
