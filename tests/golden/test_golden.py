"""Pins what seeded models compute: forwards of every smoke recipe, and two short training logs.

A change that should not alter results leaves these numbers alone. One that should is recorded with

    python tests/golden/test_golden.py

and the difference explained in the commit. Tolerances cover other releases of torch and CPUs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from spectok import load_tokenizer
from spectok.data import build_dataset
from spectok.recipes.files import list_recipes
from spectok.training import train_tokenizer
from spectok.training.recipe import load_tokenizer_recipe

GOLDEN = Path(__file__).with_name("golden.json")
TRAINED = ("smoke/qgvae", "smoke/vqvae")


def tokenizer_recipes() -> list[str]:
    """Return the smoke recipes of tokenizers."""
    names = [name for name in list_recipes() if name.startswith("smoke/")]
    return [name for name in names if "\ntokenizer:\n" in list_recipes()[name].read_text()]


def seeded_forward(name: str) -> dict[str, Any]:
    """Build a smoke recipe's tokenizer from seed 0 and push four digits through it."""
    recipe = load_tokenizer_recipe(name)
    torch.manual_seed(0)
    options = dict(recipe.tokenizer)
    model = load_tokenizer(options.pop("name"), **options)
    data = build_dataset(recipe.data)
    images = torch.stack([data[i]["images"] for i in range(4)])
    with torch.no_grad():
        output = model(images)
        indices = model.eval().encode(images)
    return {
        "reconstruction_mean": output.reconstruction.mean().item(),
        "reconstruction_std": output.reconstruction.std().item(),
        "losses": {key: value.item() for key, value in sorted(output.losses.items())},
        "indices": indices[0].tolist(),
    }


def training_log(name: str, folder: Path) -> list[float]:
    """Train a smoke recipe and return its logged losses."""
    recipe = load_tokenizer_recipe(
        name, ["train.steps=8", "train.log_every=2", "train.save_every=8"]
    )
    result = train_tokenizer(recipe, folder)
    return [record["loss"] for record in result.history]


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", tokenizer_recipes())
def test_seeded_forward(name, golden):
    found, expected = seeded_forward(name), golden["forwards"][name]
    assert found["indices"] == expected["indices"]
    for key in ("reconstruction_mean", "reconstruction_std"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_training_log(name, golden, tmp_path):
    assert training_log(name, tmp_path) == pytest.approx(golden["training"][name], rel=2e-3)


def write() -> None:
    """Record the numbers of this checkout."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: training_log(name, Path(folder, name)) for name in TRAINED}
    forwards = {name: seeded_forward(name) for name in tokenizer_recipes()}
    GOLDEN.write_text(json.dumps({"forwards": forwards, "training": logs}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(write())
