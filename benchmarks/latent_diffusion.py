"""Latent diffusion on the latents of two tokenizers of MNIST: samples get better with training.

    python benchmarks/latent_diffusion.py --data DIR
    python benchmarks/latent_diffusion.py ldm/mnist_small --data DIR --steps 100 200

DIR holds MNIST as parquet files. Each recipe's tokenizer is trained first, then the diffusion,
which stops at each of ``--steps`` to be measured: 2,000 samples, classes in turn, are compared with
the test images in the features of a classifier trained on MNIST (a Fréchet distance; not FID), and
the classifier says how many show the class that was asked for. The learning rate stays constant and
the averaged weights draw, so one run is measured ever later, and not four runs.

Everything is kept in ``--out`` and taken up again. Results are merged by recipe into
``results/latent_diffusion.json``; a picture of the samples, one row per checkpoint, goes beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectok import load_tokenizer
from spectok.config import load_recipe
from spectok.data import ImageDataset, build_dataset
from spectok.evaluation import (
    ClassifierRecipe,
    ImageClassifier,
    Moments,
    frechet_distance,
    load_classifier,
    train_classifier,
)
from spectok.images import save_grid, to_float, to_uint8
from spectok.machine import describe_machine
from spectok.metrics import evaluate_reconstruction
from spectok.training import train_tokenizer
from spectok_generation.diffusion import DiffusionOptions
from spectok_generation.generate import choose_labels, draw_images, load_pair
from spectok_generation.recipe import PriorRecipe, load_prior_recipe
from spectok_generation.training import train_prior

RECIPES = ("ldm/mnist_small", "ldm/fqvae_mnist_small")
STEPS = (250, 500, 1000, 2000)
NUM_SAMPLES = 2000
SHOWN = 20
SAMPLING = DiffusionOptions(num_steps=25)
RESULTS = Path(__file__).parent / "results"


class Judge:
    """A classifier, and the test images as it sees them.

    Args:
        classifier: Trained on the training images.
        dataset: The test images.
    """

    def __init__(self, classifier: ImageClassifier, dataset: ImageDataset):
        self.classifier, self.dataset = classifier, dataset
        self.real = self.moments(to_float(torch.tensor(dataset.uint8_images())))

    @torch.no_grad()
    def moments(self, images: Tensor) -> Moments:
        """Return the moments of the features of images, rounded to 8 bits."""
        moments = Moments()
        for batch in to_float(to_uint8(images)).split(256):
            moments.add(self.classifier.features(batch))
        return moments

    def distance(self, images: Tensor) -> float:
        """Return the Fréchet distance of images to the test images."""
        return frechet_distance(self.moments(images), self.real)


def make_judge(data: str, folder: Path) -> Judge:
    """Train the classifier, unless it is there."""
    recipe = ClassifierRecipe.model_validate({"data": {"name": "mnist", "path": data}})
    if not (folder / "model").is_dir():
        train_classifier(recipe, folder, resume=True)
    test = build_dataset(recipe.data.model_copy(update={"split": "test"}), train=False)
    return Judge(load_classifier(folder), test)


def make_tokenizer(recipe_name: str, data: str, folder: Path) -> Path:
    """Train a tokenizer, unless it is there, and return where it is."""
    recipe = load_recipe(recipe_name, [("data.path", data)])
    if not (folder / "model").is_dir():
        train_tokenizer(
            recipe.tokenizer, recipe.data, recipe.train, folder, seed=recipe.seed, resume=True
        )
    return folder / "model"


def measure_tokenizer(folder: Path, judge: Judge) -> dict[str, Any]:
    """Return what can be hoped for: the distance of the reconstructions of the test images."""
    tokenizer = load_tokenizer(folder).eval()
    images = to_float(torch.tensor(judge.dataset.uint8_images()))
    with torch.no_grad():
        decoded = [tokenizer.decode(tokenizer.encode(batch)) for batch in images.split(256)]
    measured = evaluate_reconstruction(tokenizer, judge.dataset)
    return {
        "latent_shape": list(tokenizer.latent_shape),
        "bits_per_image": tokenizer.token_spec.bits_per_image,
        "psnr": measured["psnr"],
        "classifier_frechet": judge.distance(torch.cat(decoded)),
    }


def measure(recipe: PriorRecipe, steps: int, folder: Path, judge: Judge) -> dict[str, Any]:
    """Train up to a step, and measure samples; or return what was measured before."""
    kept, shown = folder / f"step-{steps}.json", folder / f"step-{steps}.pt"
    if kept.is_file() and shown.is_file():
        return json.loads(kept.read_text())
    train = recipe.train.model_copy(update={"steps": steps})
    start = time.process_time()
    result = train_prior(recipe.model_copy(update={"train": train}), folder, resume=True)
    training = time.process_time() - start
    prior, tokenizer = load_pair(folder)
    labels = choose_labels(prior, NUM_SAMPLES)
    start = time.process_time()
    images = draw_images(prior, tokenizer, NUM_SAMPLES, labels, options=SAMPLING)
    measured = {
        "steps": steps,
        "classifier_frechet": judge.distance(images),
        "recognised": (judge.classifier.classify(images) == labels).float().mean().item(),
        "loss": result.history[-1]["loss"],
        "cpu_seconds_since_last": round(training),
        "cpu_seconds_of_sampling": round(time.process_time() - start),
    }
    torch.save(images[:SHOWN], shown)
    kept.write_text(json.dumps(measured))
    return measured


def run(name: str, arguments: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Train and measure one recipe; draw its picture."""
    folder = arguments.out / name.replace("/", "-")
    given = load_prior_recipe(name, [("data.path", arguments.data)])
    tokenizer = make_tokenizer(str(given.tokenizer), arguments.data, folder / "tokenizer")
    recipe = given.model_copy(update={"tokenizer": str(tokenizer)})
    checkpoints = [measure(recipe, s, folder / "ldm", judge) for s in sorted(arguments.steps)]
    rows = [torch.load(folder / "ldm" / f"step-{c['steps']}.pt") for c in checkpoints]
    real = torch.stack([judge.dataset[i]["images"] for i in range(SHOWN)])
    picture = RESULTS / f"latent_diffusion_{name.split('/')[-1]}.png"
    save_grid(torch.cat([*rows, real]), picture, columns=SHOWN)
    return {
        "tokenizer": measure_tokenizer(tokenizer, judge),
        "checkpoints": checkpoints,
        "picture": f"{picture.name}: a row for each checkpoint, then test images",
    }


def main() -> None:
    """Run the recipes that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help=f"by default {' and '.join(RECIPES)}")
    parser.add_argument("--data", required=True, help="folder with MNIST as parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/latent_diffusion"))
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="where to measure")
    arguments = parser.parse_args()
    judge = make_judge(arguments.data, arguments.out / "classifier")
    path = RESULTS / "latent_diffusion.json"
    for name in arguments.recipes or RECIPES:
        result = run(name, arguments, judge)
        results = json.loads(path.read_text()) if path.is_file() else {}
        results[name] = result
        results["judge"] = {
            "test_accuracy": judge.classifier.config["held_out_accuracy"],
            "trained_on": judge.classifier.config["trained_on"],
            "samples": NUM_SAMPLES,
            "sampling_steps": SAMPLING.num_steps,
        }
        results["machine"] = describe_machine()
        results["command"] = "python benchmarks/latent_diffusion.py --data DIR"
        path.write_text(json.dumps(results, indent=1) + "\n")
        for checkpoint in result["checkpoints"]:
            print(name, json.dumps(checkpoint))


if __name__ == "__main__":
    main()
