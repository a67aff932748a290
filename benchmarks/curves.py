"""One tokenizer trained for ten passes over CIFAR-10, measured at every checkpoint.

    python benchmarks/curves.py vqvae --data DIR --search     # 1,000 steps at each of three rates
    python benchmarks/curves.py vqvae --data DIR --rate 4e-3  # 15,625 steps of 32 images

The recipe is ``compare/cifar10/KEY`` on all 50,000 images. Runs are kept under ``runs/curves`` and
go on where they were stopped. The search takes the rate of the lowest training error over the last
150 of its steps, in which no image is seen a second time. Checkpoints are measured on the first
2,000 test images, the final model on all of them; results go into ``results/curves``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from spectok import load_tokenizer, messages
from spectok.data import DataConfig, build_dataset
from spectok.evaluation import evaluate_reconstruction
from spectok.machine import describe_machine
from spectok.training import TokenizerRecipe, load_tokenizer_recipe, train_tokenizer
from spectok.training.checkpoint import list_checkpoints, read_manifest
from spectok.training.log import read_log

RATES = ("1e-3", "2e-3", "4e-3")
EQUAL_SIZE = {
    "vqvae2": ["tokenizer.channels=88", "tokenizer.num_blocks=1"],
    "favae": ["tokenizer.channels=22"],
    "fqvae": ["tokenizer.max_channels=40"],
    "qgvae": [
        "tokenizer.codebook_dim=4",
        "tokenizer.num_heads=64",
        "tokenizer.quantizer={name: ema, num_codebooks: 64, commitment_weight: 0.05}",
    ],
}
"""Settings that bring a tokenizer to within a quarter of the others' parameters."""
SETTINGS = ("data.limit=null", "train.sample_every=null", "train.save_every=1000")
KEPT = ("psnr", "ssim", "mse", "codebook_usage", "perplexity", "bits_per_image", "parameters")
CURVE_IMAGES = 2000
RESULTS = Path(__file__).parent / "results" / "curves"


def main() -> None:
    """Search for a rate, or train for long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("key", help="tokenizer: a recipe of compare/cifar10")
    parser.add_argument("--data", required=True, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--search", action="store_true", help="try three learning rates briefly")
    parser.add_argument("--rate", default="1e-3", help="learning rate of the long run")
    parser.add_argument("--steps", type=int, default=15_625)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.search:
        errors = {}
        for rate in RATES:
            settings = [f"train.learning_rate={rate}", "train.steps=1000", "train.warmup_steps=100"]
            folder = train(arguments.key, arguments.data, settings, f"search-{rate}")
            lines = read_log(folder / "log.jsonl")[-3:]
            errors[rate] = sum(line["loss/reconstruction"] for line in lines) / len(lines)
            print(f"{arguments.key} at {rate}: training error {errors[rate]:.5f}")
        print(f"best rate: {min(errors, key=lambda rate: errors[rate])}")
        return
    settings = [f"train.learning_rate={arguments.rate}", f"train.steps={arguments.steps}"]
    settings += ["train.warmup_steps=200", "train.keep_last=100"]
    folder = train(arguments.key, arguments.data, settings, "long")
    result = {"command": f"python benchmarks/curves.py {arguments.key} --data DIR"}
    result["command"] += f" --rate {arguments.rate}"
    result |= measure(folder, arguments.data)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"cifar10_{arguments.key}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{path}: {result['final']['psnr']:.2f} dB")


def train(key: str, data: str, settings: list[str], name: str) -> Path:
    """Train, or go on training, and return the folder of the run."""
    overrides = [("data.path", data), *SETTINGS, *EQUAL_SIZE.get(key, []), *settings]
    recipe = load_tokenizer_recipe(f"compare/cifar10/{key}", overrides)
    folder = Path("runs", "curves", f"{key}-{name}")
    with messages.silenced():
        train_tokenizer(recipe, folder, resume="auto")
    return folder


def measure(folder: Path, data: str) -> dict[str, Any]:
    """Measure every checkpoint of a run, and its final model."""
    recipe = load_tokenizer_recipe(folder / "recipe.yaml")
    options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
    model, curve = load_tokenizer(recipe.tokenizer["name"], **options), []
    some, everything = (test_images(recipe, data, limit) for limit in (CURVE_IMAGES, None))
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        load_model(model, checkpoint / "model.safetensors")
        manifest, found = read_manifest(checkpoint), evaluate_reconstruction(model, some)
        point = {"step": manifest["step"], "seconds": round(manifest["seconds"], 1)}
        names = ("psnr", "ssim", "codebook_usage", "perplexity")
        curve.append(point | {name: found[name] for name in names})
        print(point["step"], f"{found['psnr']:.2f} dB")
    final = evaluate_reconstruction(load_tokenizer(folder / "model"), everything)
    sections = recipe.model_dump(mode="json", exclude={"output"})
    sections["data"].pop("path")
    return {
        "recipe": sections,
        "curve_images": CURVE_IMAGES,
        "curve": curve,
        "final_images": len(everything),
        "final": {name: final[name] for name in KEPT},
        "machine": describe_machine(),
    }


def test_images(recipe: TokenizerRecipe, data: str, limit: int | None) -> Any:
    """Return test images at the size of a recipe."""
    size = {"image_size": recipe.data.image_size, "channels": recipe.data.channels}
    config = DataConfig(name=recipe.data.name, path=data, split="test", limit=limit, **size)
    return build_dataset(config, train=False)


if __name__ == "__main__":
    main()
