"""Latent diffusion on the latents of three tokenizers of MNIST: samples get better with training.

    python benchmarks/latent_diffusion.py --data DIR
    python benchmarks/latent_diffusion.py ldm/mnist_small --data DIR --steps 100 200
    python benchmarks/latent_diffusion.py ldm/fqvae_mnist_small ldm/cvqvae_mnist_small --data DIR

The second and third recipe are FQ-VAE's Fig. 6 at small scale: its latents beside CVQ-VAE's.

DIR holds MNIST as parquet files. Each recipe's tokenizer is trained first, then the diffusion,
which is measured at each of ``--steps``: 2,000 samples, classes in turn, are compared with the test
images in the features of a classifier trained on MNIST (a Fréchet distance; not FID), and the
classifier counts how many show the requested class. The learning rate is constant and samples come
from the averaged weights, so a single run can be measured at all steps.

Everything is kept in ``--out`` and reused. Results are merged by recipe into
``results/latent_diffusion.json``, with a picture of the samples, one row per checkpoint; those of
other ``--steps`` go into ``--out``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from judging import Judge, make_judge, make_tokenizer, measure_tokenizer
from one_line import positive, run_program

from spectok.errors import ConfigError
from spectok.images import save_grid
from spectok.machine import describe_machine
from spectok.plugins.registry import get_prior
from spectok_generation.diffusion import LDM, DiffusionOptions
from spectok_generation.drawing import choose_labels, draw_images
from spectok_generation.pairs import load_pair
from spectok_generation.prior_recipe import PriorRecipe, load_prior_recipe
from spectok_generation.training import train_prior

RECIPES = ("ldm/mnist_small", "ldm/fqvae_mnist_small", "ldm/cvqvae_mnist_small")
STEPS = (250, 500, 1000, 2000)
NUM_SAMPLES = 2000
SHOWN = 20
SAMPLING = DiffusionOptions(num_steps=25)
RESULTS = Path(__file__).parent / "results"


def measure(recipe: PriorRecipe, steps: int, folder: Path, judge: Judge) -> dict[str, Any]:
    """Train up to a step and measure samples, or return an earlier measurement."""
    kept, shown = folder / f"step-{steps}.json", folder / f"step-{steps}.pt"
    if kept.is_file() and shown.is_file():
        return json.loads(kept.read_text())
    train = recipe.train.model_copy(update={"steps": steps})
    start = time.process_time()
    result = train_prior(recipe.model_copy(update={"train": train}), folder, resume="auto")
    training = time.process_time() - start
    prior, tokenizer = load_pair(folder)
    labels = choose_labels(prior, NUM_SAMPLES)
    start = time.process_time()
    images = draw_images(prior, tokenizer, NUM_SAMPLES, labels, options=SAMPLING)
    measured = {
        "steps": steps,
        "classifier_frechet": judge.distance(images),
        "recognised": judge.recognised(images, labels),
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
    picture = results_of(arguments) / f"latent_diffusion_{name.split('/')[-1]}.png"
    save_grid(torch.cat([*rows, real]), picture, columns=SHOWN)
    return {
        "command": command(name, arguments.steps),
        "tokenizer": measure_tokenizer(tokenizer, judge),
        "checkpoints": checkpoints,
        "picture": f"{picture.name}: a row for each checkpoint, then test images",
    }


def command(name: str, steps: Sequence[int]) -> str:
    """Return the command that measures a recipe."""
    words = f"python benchmarks/latent_diffusion.py {name} --data DIR"
    return words if tuple(steps) == STEPS else f"{words} --steps {' '.join(map(str, steps))}"


def results_of(arguments: argparse.Namespace) -> Path:
    """Return the folder of results; a trial by other steps does not take their place."""
    return RESULTS if tuple(arguments.steps) == STEPS else arguments.out


def check_recipe(name: str) -> None:
    """Check, before anything is trained, that a recipe is of latent diffusion.

    Raises:
        ConfigError: If it is of another prior, or of none.
    """
    prior = load_prior_recipe(name).prior["name"]
    if not issubclass(get_prior(prior), LDM):
        raise ConfigError(f"{name} trains a {prior}, which draws no latents; give one of an ldm")


def main() -> None:
    """Run the recipes that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help=f"by default {', '.join(RECIPES)}")
    parser.add_argument("--data", required=True, help="folder with MNIST as parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/latent_diffusion"))
    parser.add_argument("--steps", type=positive, nargs="+", default=STEPS, help="where to measure")
    arguments = parser.parse_args()
    for name in arguments.recipes:
        check_recipe(name)
    judge = make_judge(arguments.data, arguments.out / "classifier")
    path = results_of(arguments) / "latent_diffusion.json"
    for name in arguments.recipes or RECIPES:
        result = run(name, arguments, judge)
        results = json.loads(path.read_text()) if path.is_file() else {}
        results[name] = result
        results["judge"] = judge.describe()
        results |= {"samples": NUM_SAMPLES, "sampling_steps": SAMPLING.num_steps}
        results["machine"] = describe_machine()
        results["command"] = command("RECIPE", STEPS)
        path.write_text(json.dumps(results, indent=1) + "\n")
        for checkpoint in result["checkpoints"]:
            print(name, json.dumps(checkpoint))


if __name__ == "__main__":
    run_program(main)
