"""Bits per image that one small transformer needs for the tokens of each trained tokenizer.

    python benchmarks/token_bits.py --data DIR                  # every model of CIFAR-10
    python benchmarks/token_bits.py --set mnist --data DIR vqvae qgvae

The models are those of ``curves.py``, installed as ``KEY/SET``; all spend the same bits before
coding. On the tokens of each, the same ``gpt-micro`` is trained without a class, with the same
steps, batches, rate and seed. Its exact likelihood of the test images' tokens is the length of a
file that an arithmetic coder would write: fewer bits mean tokens that are easier to predict. Runs
are kept under ``runs/token_bits``; results go into ``results/token_bits.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_line import run_program

from spectok import load_tokenizer, messages
from spectok.data import DataConfig, build_dataset
from spectok.evaluation.protocol import make_protocol
from spectok.machine import describe_machine
from spectok.plugins.registry import list_registered
from spectok_generation import load_prior
from spectok_generation.extraction import Extraction
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.training import extract_data, train_prior

HERE = Path(__file__).parent
RESULT = HERE / "results" / "token_bits.json"
RECIPE = "gpt/mnist_small"
SETTINGS = (
    "class_conditional=false",
    "prior.condition_dropout=0",
    "train.steps=800",
    "train.sample_every=null",
)
BATCH = 200


def main() -> None:
    """Measure the models that are named, or all of a data set."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("keys", nargs="*", help="tokenizers; default: every model of the data set")
    parser.add_argument("--set", choices=("cifar10", "mnist"), default="cifar10", help="data set")
    parser.add_argument("--data", required=True, help="folder with the data set as parquet files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ending = f"/{arguments.set}"
    names = [name for name, model in list_registered("model").items() if model.kind == "tokenizer"]
    found = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    for key in arguments.keys:
        if key not in found:
            parser.error(f"{key}{ending} is not installed; there are: {', '.join(found)}")
    for key in arguments.keys or found:
        measured = measure(arguments.set, key, arguments.data)
        report = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        report |= {"command": "python benchmarks/token_bits.py --set SET --data DIR"}
        report |= {"recipe": RECIPE, "settings": list(SETTINGS), "machine": describe_machine()}
        report.setdefault(arguments.set, {})[key] = measured
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{key}: {measured['bits_per_image']:.1f} of {measured['uncoded']:.0f} bits")


def measure(data_set: str, key: str, data: str) -> dict[str, Any]:
    """Train the transformer on the tokens of a model, and return its bits on the test images."""
    model, folder = f"{key}/{data_set}", Path("runs/token_bits", data_set, key)
    settings = [f"data.name={data_set}", f"data.path={data}", f"tokenizer={model}", *SETTINGS]
    with messages.silenced():
        train_prior(load_prior_recipe(RECIPE, settings), folder, resume="auto")
        prior, tokenizer = load_prior(folder / "model").eval(), load_tokenizer(model).eval()
        test = DataConfig(name=data_set, path=data, split="test")
        cache = extract_data(tokenizer, test, folder / "test_tokens", Extraction())
    tokens = torch.from_numpy(cache.indices(np.arange(len(cache))))
    nats = torch.cat([prior.log_prob(part) for part in tokens.split(BATCH)])
    spec, images = tokenizer.token_spec, build_dataset(test)
    return {
        "protocol": make_protocol(images, "float32", 0, {}, likelihood="exact", condition=None),
        "bits_per_image": -nats.mean().item() / math.log(2),
        "uncoded": spec.bits_per_image,
        "tokens": spec.num_tokens,
        "parameters": sum(p.numel() for p in prior.parameters()),
        "images": len(tokens),
    }


if __name__ == "__main__":
    run_program(main)
