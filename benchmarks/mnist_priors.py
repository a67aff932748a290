"""Digits drawn from priors on the trained tokenizers of MNIST, judged by a classifier.

    python benchmarks/mnist_priors.py --data DIR
    python benchmarks/mnist_priors.py --data DIR --tokenizers vqvae --priors gpt

DIR holds MNIST as parquet files. The tokenizers are those that are installed as ``KEY/mnist``, ten
passes over MNIST each, 392 bits per image. On the tokens of each, both priors are trained with the
same recipe, conditioned on the class. A prior's exact likelihood of the test images' tokens, given
their classes, is the bits that an arithmetic coder would write. From each prior, 1,000 digits,
classes in turn, are drawn in three ways. The classifier, trained on real images alone, counts how
many show the requested class; in its features they are compared with the test images (a Fréchet
distance; not FID).

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
from judging import Judge, make_judge, measure_tokenizer, reconstruct
from torch import Tensor

from spectok import ImageTokenizer, list_models, load_tokenizer
from spectok.data import build_dataset
from spectok.images import save_grid, to_float
from spectok.machine import describe_machine
from spectok_generation.drawing import choose_labels, draw_images
from spectok_generation.pairs import load_pair
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.priors import Prior
from spectok_generation.sampling import SamplingOptions
from spectok_generation.training import train_prior

PRIORS = ("gpt", "pixelcnn")
DATA = "mnist"
SETTINGS = {
    "temperature 1": SamplingOptions(),
    "temperature 0.8": SamplingOptions(temperature=0.8),
    "temperature 0.8, guidance 2": SamplingOptions(temperature=0.8, guidance=2.0),
}
SETTING = "mnist_small"
SHOWN_SETTING = "temperature 0.8"
NUM_SAMPLES, SHOWN, BATCH = 1000, 20, 250
RESULTS = Path(__file__).parent / "results"


def compare_sets(name: str, judge: Judge) -> dict[str, Any]:
    """Measure a tokenizer, and the distances of images and their reconstructions to test images."""
    data = judge.data.model_copy(update={"split": "train", "limit": NUM_SAMPLES})
    train = build_dataset(data, train=False)
    images = to_float(torch.tensor(train.uint8_images()))
    labels = torch.tensor([train[i]["label"] for i in range(len(train))])
    decoded = reconstruct(load_tokenizer(name), images)
    return measure_tokenizer(name, judge) | {
        "trained_model": name,
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
    prior_name: str, tokenizer: str, folder: Path, data: str, judge: Judge
) -> tuple[dict[str, Any], Tensor]:
    """Train a prior, unless it exists; measure its samples and return the first digits."""
    settings = [("tokenizer", tokenizer), ("data.path", data)]
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
        "test_bits_per_image": test_bits(prior, decoder, judge),
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


@torch.no_grad()
def test_bits(prior: Prior, tokenizer: ImageTokenizer, judge: Judge) -> float:
    """Return the mean bits per test image of its tokens, given its class."""
    labels = torch.tensor([judge.dataset[i]["label"] for i in range(len(judge.dataset))])
    nats = [
        prior.log_prob(tokenizer.encode(images), classes)
        for images, classes in zip(judge.images.split(BATCH), labels.split(BATCH))
    ]
    return -torch.cat(nats).double().mean().item() / math.log(2)


def main() -> None:
    """Measure what is requested; other results stay as they were measured before."""
    found = [name.split("/")[0] for name in list_models() if name.endswith(f"/{DATA}")]
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with MNIST as parquet files")
    parser.add_argument("--tokenizers", nargs="+", choices=found, default=found)
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_priors"))
    arguments = parser.parse_args()
    judge = make_judge(arguments.data, arguments.out / "classifier")
    path, pictures = RESULTS / "mnist_priors.json", arguments.out / "shown.pt"
    shown: dict[str, Tensor] = torch.load(pictures) if pictures.is_file() else {}
    for name in arguments.tokenizers:
        folder, tokenizer = arguments.out / name, f"{name}/{DATA}"
        sets = compare_sets(tokenizer, judge)
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
    order = [key for t in found for p in PRIORS if (key := f"{t} {p}") in shown]
    save_grid(torch.cat([shown[key] for key in order]), RESULTS / "mnist_priors.png", SHOWN)
    print(f"rows of {RESULTS / 'mnist_priors.png'}: {', '.join(order)}")


if __name__ == "__main__":
    main()
