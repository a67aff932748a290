"""Digits drawn from priors on the trained tokenizers of MNIST, judged by a classifier.

    python benchmarks/mnist_priors.py --data DIR
    python benchmarks/mnist_priors.py --data DIR --tokenizers vqvae --priors gpt
    python benchmarks/mnist_priors.py --data DIR --steps 20 --samples 40 --out runs/small

DIR holds MNIST as parquet files. The tokenizers are those that are installed as ``KEY/mnist``, ten
passes over MNIST each, 392 bits per image. On the tokens of each, the priors are trained with the
same recipe, conditioned on the class; ``maskgit`` has the size, the steps and the optimiser of
``gpt``. The likelihood of the test images' tokens, given their classes, is the bits that an
arithmetic coder would write; that of ``maskgit`` is a bound. From each prior, 1,000 digits, classes
in turn, are drawn in three ways, and from ``maskgit`` each of these in 4, 8 and 16 steps. The
classifier, trained on real images alone, counts how many show the requested class; in its features
they are compared with the test images (a Fréchet distance; not FID).

For reference, two other sets of as many images are compared with the test images in the same way:
training images, which no samples should beat, and their reconstructions, the best that the
tokenizer allows.

Everything is kept in ``--out`` and reused. Results are merged into
``results/mnist_priors.json``; a picture of the first samples is saved beside it. With ``--steps``
or ``--samples``, which show that the program works, both are written into ``--out`` instead.
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
from one_line import positive, run_program
from torch import Tensor

from spectok import ImageTokenizer, list_models, load_tokenizer
from spectok.data import build_dataset
from spectok.images import save_grid, to_float
from spectok.machine import describe_machine
from spectok_generation.drawing import choose_labels, draw_images
from spectok_generation.masked import MaskedOptions
from spectok_generation.pairs import load_pair
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.priors import Prior
from spectok_generation.sampling import SamplingOptions
from spectok_generation.training import train_prior

PRIORS = ("gpt", "pixelcnn", "maskgit")
MASKED, MASKED_STEPS = "maskgit", (4, 8, 16)
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


def compare_sets(name: str, judge: Judge, num_samples: int) -> dict[str, Any]:
    """Measure a tokenizer, and the distances of images and their reconstructions to test images."""
    data = judge.data.model_copy(update={"split": "train", "limit": num_samples})
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


def settings_of(prior_name: str) -> dict[str, SamplingOptions]:
    """Return the ways in which digits are drawn from a prior, by name."""
    if prior_name != MASKED:
        return SETTINGS
    return {
        f"{steps} steps, {name}": MaskedOptions(
            options.temperature, None, None, options.guidance, num_steps=steps
        )
        for steps in MASKED_STEPS
        for name, options in SETTINGS.items()
    }


def measure_prior(
    prior_name: str,
    tokenizer: str,
    folder: Path,
    settings: list[tuple[str, Any]],
    judge: Judge,
    num_samples: int,
) -> tuple[dict[str, Any], Tensor]:
    """Train a prior, unless it exists; measure its samples and return the first digits."""
    recipe = load_prior_recipe(f"{prior_name}/{SETTING}", [("tokenizer", tokenizer), *settings])
    record = folder / "training.json"
    if not (folder / "model").is_dir():
        start = time.process_time()
        result = train_prior(recipe, folder, resume="auto")
        seconds = round(time.process_time() - start)
        nats = result.history[-1]["loss"]  # of maskgit, per hidden token
        found = {"training_bits_per_token": nats / math.log(2), "training_cpu_seconds": seconds}
        record.write_text(json.dumps(found))
    prior, decoder = load_pair(folder, tokenizer)
    labels = choose_labels(prior, num_samples)
    found = json.loads(record.read_text()) | {
        "recipe": f"generation/{prior_name}/{SETTING}",
        "parameters": sum(p.numel() for p in prior.parameters()),
        "steps": recipe.train.steps,
        "likelihood": prior.likelihood,
        "test_bits_per_image": test_bits(prior, decoder, judge),
    }
    shown: dict[str, Tensor] = {}
    for name, options in settings_of(prior_name).items():
        images = draw_images(prior, decoder, num_samples, labels, options=options, batch_size=200)
        shown[name] = images[:SHOWN]
        found[name] = {
            "classifier_frechet": judge.distance(images),
            "recognised": judge.recognised(images, labels),
        }
    return found, next(images for name, images in shown.items() if name.endswith(SHOWN_SETTING))


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
    parser.add_argument("--steps", type=positive, help="instead of the recipe's training steps")
    parser.add_argument(
        "--samples", type=positive, default=NUM_SAMPLES, help="digits of each prior"
    )
    arguments = parser.parse_args()
    judge = make_judge(arguments.data, arguments.out / "classifier")
    is_whole = arguments.steps is None and arguments.samples == NUM_SAMPLES
    results = RESULTS if is_whole else arguments.out
    settings: list[tuple[str, Any]] = [("data.path", arguments.data)]
    settings += [] if arguments.steps is None else [("train.steps", arguments.steps)]
    path, pictures = results / "mnist_priors.json", arguments.out / "shown.pt"
    shown: dict[str, Tensor] = torch.load(pictures) if pictures.is_file() else {}
    for name in arguments.tokenizers:
        folder, tokenizer = arguments.out / name, f"{name}/{DATA}"
        sets = compare_sets(tokenizer, judge, arguments.samples)
        for prior in arguments.priors:
            measured, shown[f"{name} {prior}"] = measure_prior(
                prior, tokenizer, folder / prior, settings, judge, arguments.samples
            )
            report = json.loads(path.read_text()) if path.is_file() else {}
            report |= {"command": "python benchmarks/mnist_priors.py --data DIR"}
            report |= {"machine": describe_machine(), "judge": judge.describe()}
            report |= {"samples": arguments.samples}
            report.setdefault(name, {}).update(tokenizer=sets, **{prior: measured})
            path.write_text(json.dumps(report, indent=1) + "\n")
            torch.save(shown, pictures)
            print(name, prior, json.dumps(measured), flush=True)
    order = [key for t in found for p in PRIORS if (key := f"{t} {p}") in shown]
    columns = min(SHOWN, arguments.samples)
    save_grid(torch.cat([shown[key] for key in order]), results / "mnist_priors.png", columns)
    print(f"rows of {results / 'mnist_priors.png'}: {', '.join(order)}")


if __name__ == "__main__":
    run_program(main)
