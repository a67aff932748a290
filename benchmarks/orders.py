"""Held-out bits of priors in raster order, random orders and by levels. Writes ``orders.json``.

    python benchmarks/orders.py --data DIR                        # vqvae, qgvae and hrvqvae
    python benchmarks/orders.py --data DIR --steps 20 --out runs/small

DIR holds MNIST as parquet files. The tokenizers are those that are installed as ``KEY/mnist``, 392
bits each. On the tokens of the first training images of each, the same ``gpt`` is trained twice,
given the class: as it is by default, and with ``order=random`` and its default fractions, or, where
tokens have levels, with ``predict=level``. Steps, batches, rate and seed are equal, and the random
one has a vector more per place. What is compared is the exact likelihood of the tokens of test
images, in the order of the spec, and the processor time in which 64 images are drawn, in turns.

Everything is kept in ``--out`` and reused. Results are merged into ``results/orders.json``; with
``--steps``, which shows that the program works, they are written into ``--out`` instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_line import positive, run_program

from spectok import load_tokenizer, messages
from spectok.data import DataConfig, build_dataset
from spectok.evaluation.protocol import make_protocol
from spectok.machine import describe_machine
from spectok_generation import load_prior, sample_tokens
from spectok_generation.extraction import Extraction
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.tokens import TokenCache
from spectok_generation.training import extract_data, train_prior
from spectok_generation.training_set import fit_data

RESULT = Path(__file__).parent / "results" / "orders.json"
COMPARED = {
    "vqvae": ("prior.order=raster", "prior.order=random"),
    "qgvae": ("prior.order=raster", "prior.order=random"),
    "hrvqvae": ("prior.predict=token", "prior.predict=level"),
}
RECIPE = "gpt/mnist_small"
SETTINGS = (
    "prior.size=gpt-nano",
    "prior.condition_dropout=0",
    "train.batch_size=32",
    "train.learning_rate=2e-3",
    "train.sample_every=null",
)
IMAGES = {"train": 20_000, "test": 2_000}
STEPS, BATCH = 800, 200
DRAWN, ROUNDS = 64, 3


def test_protocol(key: str, data: str) -> dict[str, Any]:
    """Return how the bits of the test images are measured, with its id."""
    images = DataConfig(name="mnist", path=data, split="test", limit=IMAGES["test"])
    dataset = build_dataset(fit_data(images, load_tokenizer(f"{key}/mnist")), train=False)
    return make_protocol(dataset, "float32", 0, {}, likelihood="exact", condition="class")


def tokens_of(key: str, split: str, data: str, out: Path) -> Path:
    """Extract the tokens of a part of MNIST, unless they exist."""
    folder = out / key / split
    if not folder.is_dir():
        images = DataConfig(name="mnist", path=data, split=split, limit=IMAGES[split])
        extract_data(load_tokenizer(f"{key}/mnist"), images, folder, Extraction(batch_size=BATCH))
    return folder


def measure(setting: str, steps: int, train: Path, test: Path, folder: Path) -> dict[str, Any]:
    """Train a prior, unless it exists, and return its bits per token of the test images."""
    taken = folder / "cpu_seconds.json"
    if not taken.is_file():
        given = [
            "tokenizer=null",
            f"tokens={train}",
            setting,
            f"train.steps={steps}",
        ]
        start = time.process_time()
        train_prior(load_prior_recipe(RECIPE, [*SETTINGS, *given]), folder, resume="auto")
        taken.write_text(json.dumps(round(time.process_time() - start)))
    prior, cache = load_prior(folder), TokenCache(test)
    tokens = torch.from_numpy(cache.indices(np.arange(len(cache))))
    labels = torch.tensor(cache.labels)
    parts = zip(tokens.split(BATCH), labels.split(BATCH))
    nats = torch.cat([prior.log_prob(*part) for part in parts])
    per_token = -nats.double() / (math.log(2) * tokens.shape[1])
    return {
        "test_bits_per_token": per_token.mean().item(),
        "standard_error": (per_token.std() / math.sqrt(len(tokens))).item(),
        "parameters": sum(p.numel() for p in prior.parameters()),
        "training_cpu_seconds": json.loads(taken.read_text()),
    }


def time_draws(folders: dict[str, Path]) -> dict[str, float]:
    """Return the processor seconds in which each prior draws: medians of rounds in turns."""
    priors, seconds = {n: load_prior(f) for n, f in folders.items()}, {n: [] for n in folders}
    for _ in range(ROUNDS):
        for name, prior in priors.items():
            start = time.process_time()
            sample_tokens(prior, DRAWN, torch.arange(DRAWN) % 10, batch_size=DRAWN)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Measure what is requested; other results stay as they were measured before."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with MNIST as parquet files")
    parser.add_argument("--tokenizers", nargs="+", choices=COMPARED, default=list(COMPARED))
    parser.add_argument("--steps", type=positive, help=f"instead of {STEPS:,} training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/orders"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULT if arguments.steps is None else arguments.out / RESULT.name
    steps = arguments.steps or STEPS
    for key in arguments.tokenizers:
        with messages.silenced():
            train, test = (tokens_of(key, s, arguments.data, arguments.out) for s in IMAGES)
            folders = {
                setting.partition("=")[2]: arguments.out / f"{key}-{setting.partition('=')[2]}"
                for setting in COMPARED[key]
            }
            found = {
                name: measure(setting, steps, train, test, folder)
                for setting, (name, folder) in zip(COMPARED[key], folders.items())
            }
            for name, seconds in time_draws(folders).items():
                found[name]["drawing_cpu_seconds"] = seconds
        report = json.loads(path.read_text()) if path.is_file() else {}
        report |= {"command": "python benchmarks/orders.py --data DIR"}
        report |= {"machine": describe_machine(), "recipe": RECIPE, "settings": list(SETTINGS)}
        report |= {"images": IMAGES, "steps": steps}
        report["protocol"] = test_protocol(key, arguments.data)
        report[f"{key}/mnist"] = found
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(key, json.dumps(found), flush=True)


if __name__ == "__main__":
    run_program(main)
