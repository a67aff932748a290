"""Digits drawn from priors on three tokenizers of MNIST at equal bits, judged by a classifier.

    python benchmarks/mnist_priors.py --data DIR
    python benchmarks/mnist_priors.py --data DIR --tokenizers vqvae --priors gpt

DIR holds MNIST as parquet files. Each tokenizer is trained first, at 392 bits per image, then both
priors on its tokens, conditioned on the class. From each, 1,000 digits, classes in turn, are drawn
in three ways. The classifier, trained on real images alone, counts how many show the requested
class; in its features they are compared with the test images (a Fréchet distance; not FID).

For reference, two other sets of as many images are compared with the test images in the same way:
training images, which no samples should beat, and their reconstructions, the best that the
tokenizer allows.

Everything is kept in ``--out`` and reused. Results are merged into
``results/mnist_priors.json``; a picture of the first samples is saved beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from judging import Judge, make_judge, make_tokenizer, measure_tokenizer, reconstruct
from torch import Tensor

from spectok import load_tokenizer
from spectok.data import build_dataset
from spectok.images import save_grid, to_float
from spectok.machine import describe_machine
from spectok_generation.drawing import choose_labels, draw_images
from spectok_generation.pairs import load_pair
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.sampling import SamplingOptions
from spectok_generation.training import train_prior

TOKENIZERS, PRIORS = ("qgvae", "hrvqvae", "vqvae"), ("gpt", "pixelcnn")
SETTINGS = {
    "temperature 1": SamplingOptions(),
    "temperature 0.8": SamplingOptions(temperature=0.8),
    "temperature 0.8, guidance 2": SamplingOptions(temperature=0.8, guidance=2.0),
}
SETTING = "mnist_small"
SHOWN_SETTING = "temperature 0.8"
NUM_SAMPLES, SHOWN = 1000, 20
RESULTS = Path(__file__).parent / "results"


def compare_sets(name: str, folder: Path, judge: Judge) -> dict[str, Any]:
    """Measure a tokenizer, and the distances of images and their reconstructions to test images."""
    data = judge.data.model_copy(update={"split": "train", "limit": NUM_SAMPLES})
    train = build_dataset(data, train=False)
    images = to_float(torch.tensor(train.uint8_images()))
    labels = torch.tensor([train[i]["label"] for i in range(len(train))])
    decoded = reconstruct(load_tokenizer(folder).eval(), images)
    return measure_tokenizer(folder, judge) | {
        "recipe": f"tokenizers/{name}/{SETTING}",
        "training_images": {
            "classifier_frechet": judge.distance(images),
            "recognised": judge.recognised(images, labels),
        },
        "reconstructed_training_images": {
            "classifier_frechet": judge.distance(decoded),
            "recognised": judge.recognised(decoded, labels),
        },
    }


def measure_prior(
    prior_name: str, tokenizer: Path, folder: Path, data: str, judge: Judge
) -> tuple[dict[str, Any], Tensor]:
    """Train a prior, unless it exists; measure its samples and return the first digits."""
    settings = [("tokenizer", str(tokenizer)), ("data.path", data)]
    recipe = load_prior_recipe(f"{prior_name}/{SETTING}", settings)
    record = folder / "training.json"
    if not (folder / "model").is_dir():
        start = time.process_time()
        result = train_prior(recipe, folder, resume="auto")
        seconds = round(time.process_time() - start)
        nats = result.history[-1]["loss"]
        found = {"training_bits_per_token": nats / math.log(2), "training_cpu_seconds": seconds}
        record.write_text(json.dumps(found))
    prior, decoder = load_pair(folder, tokenizer)
    labels = choose_labels(prior, NUM_SAMPLES)
    found = json.loads(record.read_text()) | {
        "recipe": f"generation/{prior_name}/{SETTING}",
        "parameters": sum(p.numel() for p in prior.parameters()),
        "steps": recipe.train.steps,
    }
    shown: dict[str, Tensor] = {}
    for name, options in SETTINGS.items():
        images = draw_images(prior, decoder, NUM_SAMPLES, labels, options=options, batch_size=200)
        shown[name] = images[:SHOWN]
        found[name] = {
            "classifier_frechet": judge.distance(images),
            "recognised": judge.recognised(images, labels),
        }
    return found, shown[SHOWN_SETTING]


def main() -> None:
    """Measure what is requested; other results stay as they were measured before."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with MNIST as parquet files")
    parser.add_argument("--tokenizers", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS))
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_priors"))
    arguments = parser.parse_args()
    judge = make_judge(arguments.data, arguments.out / "classifier")
    path, pictures = RESULTS / "mnist_priors.json", arguments.out / "shown.pt"
    shown: dict[str, Tensor] = torch.load(pictures) if pictures.is_file() else {}
    for name in arguments.tokenizers:
        folder = arguments.out / name
        tokenizer = make_tokenizer(f"{name}/{SETTING}", arguments.data, folder / "tokenizer")
        sets = compare_sets(name, tokenizer, judge)
        for prior in arguments.priors:
            measured, shown[f"{name} {prior}"] = measure_prior(
                prior, tokenizer, folder / prior, arguments.data, judge
            )
            report = json.loads(path.read_text()) if path.is_file() else {}
            report |= {"command": "python benchmarks/mnist_priors.py --data DIR"}
            report |= {"machine": describe_machine(), "judge": judge.describe()}
            report |= {"samples": NUM_SAMPLES}
            report.setdefault(name, {}).update(tokenizer=sets, **{prior: measured})
            path.write_text(json.dumps(report, indent=1) + "\n")
            torch.save(shown, pictures)
            print(name, prior, json.dumps(measured), flush=True)
    order = [key for t in TOKENIZERS for p in PRIORS if (key := f"{t} {p}") in shown]
    save_grid(torch.cat([shown[key] for key in order]), RESULTS / "mnist_priors.png", SHOWN)
    print(f"rows of {RESULTS / 'mnist_priors.png'}: {', '.join(order)}")


if __name__ == "__main__":
    main()
