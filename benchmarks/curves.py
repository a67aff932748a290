"""One tokenizer trained for ten passes over CIFAR-10 or MNIST, measured at every checkpoint.

    python benchmarks/curves.py vqvae --data DIR --search     # a short run at each of three rates
    python benchmarks/curves.py hvqvae --data DIR --search --steps 250    # where a step costs more
    python benchmarks/curves.py vqvae --data DIR              # ten passes at the best of them
    python benchmarks/curves.py --set mnist --data DIR vqvae  # --search or ten passes
    python benchmarks/curves.py vqvae --data DIR --seed 1     # the same again from another seed
    python benchmarks/curves.py --cost                        # seconds per step, all side by side

The recipe is ``compare/SET/KEY`` on all training images. Runs are kept under ``runs/curves`` and
go on where they were stopped. The search takes the rate of the lowest training error over the last
150 of its steps, in which no image is seen a second time. Checkpoints are measured on the first
2,000 test images, the final model on all of them; results go into ``results/curves``,
those of other seeds than 0 into ``seeds`` there. Seconds per
step are measured in turns in one process, since those of a long run depend on what else ran.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from one_line import positive, run_program
from safetensors.torch import load_model

from spectok import ImageTokenizer, load_tokenizer, messages
from spectok.cards import Claim
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.errors import ConfigError
from spectok.evaluation import evaluate_reconstruction
from spectok.evaluation.comparison import differing_settings
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reference import REFERENCE_IMAGES, ImageHash
from spectok.evaluation.terms import data_section
from spectok.machine import describe_machine
from spectok.modeling import model_fingerprint
from spectok.training import TokenizerRecipe, load_tokenizer_recipe, train_tokenizer
from spectok.training.checkpoint import list_checkpoints, read_manifest
from spectok.training.log import read_log

SETS = {
    "cifar10": {"steps": 15_625, "search": 1000, "warmup": 200, "rates": ("1e-3", "2e-3", "4e-3")},
    "mnist": {"steps": 9_375, "search": 600, "warmup": 200, "rates": ("2e-3", "4e-3", "8e-3")},
}
SETTINGS = ("data.limit=null", "train.sample_every=null", "train.save_every=1000")
KEPT = ("psnr", "ssim", "mse", "codebook_usage", "perplexity", "bits_per_image", "parameters")
DRAWN = ("psnr", "ssim", "codebook_usage", "perplexity")
CURVE_IMAGES = 2000
RESULTS = Path(__file__).parent / "results" / "curves"


def main() -> None:
    """Search for a rate, train for long, or time steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("key", nargs="?", help="tokenizer: a recipe of compare/SET")
    parser.add_argument("--set", choices=SETS, default="cifar10", help="data set")
    parser.add_argument("--data", help="folder with the data set as parquet files")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--search", action="store_true", help="try three learning rates briefly")
    task.add_argument("--rate", help="learning rate of the long run; default: the best searched")
    task.add_argument("--cost", action="store_true", help="time training steps of all tokenizers")
    parser.add_argument("--seed", type=int, default=0, help="of the long run")
    parser.add_argument("--steps", type=positive, help="of each run of the search")
    parser.add_argument("--settings", nargs="*", default=[], help="more settings of the long run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.cost:
        write(RESULTS / f"{arguments.set}_cost.json", time_steps(arguments.set))
    elif not arguments.key or not arguments.data:
        parser.error("a tokenizer and --data DIR are needed")
    elif arguments.search and (arguments.settings or arguments.seed):
        parser.error("--settings and --seed are for the long run; leave them out with --search")
    elif arguments.search:
        search(arguments.set, arguments.key, arguments.data, arguments.steps)
    elif arguments.steps:
        parser.error("--steps is for --search; the long run is ten passes")
    else:
        rate = arguments.rate or searched_rate(arguments.set, arguments.key)
        further, seed = arguments.settings, arguments.seed
        result = run(arguments.set, arguments.key, arguments.data, rate, further, seed)
        print(f"{arguments.key}: {result['final']['psnr']:.2f} dB")


def search(data_set: str, key: str, data: str, steps: int | None) -> None:
    """Train briefly at each rate, and keep the training errors in ``SET_rates.json``."""
    chosen, errors = SETS[data_set], {}
    for rate in chosen["rates"]:
        settings = [f"train.learning_rate={rate}", f"train.steps={steps or chosen['search']}"]
        folder = train(data_set, key, data, [*settings, "train.warmup_steps=100"], f"search-{rate}")
        lines = read_log(folder / "log.jsonl")[-3:]
        errors[rate] = sum(line["loss/reconstruction"] for line in lines) / len(lines)
        print(f"{key} at {rate}: training error {errors[rate]:.5f}", flush=True)
    path = RESULTS / f"{data_set}_rates.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found["command"] = f"python benchmarks/curves.py --set {data_set} KEY --data DIR --search"
    found["steps"] = chosen["search"]
    found.setdefault("steps_of", {})[key] = steps or chosen["search"]
    found.setdefault("training_error", {})[key] = errors
    write(path, found)
    print(f"best rate: {min(errors, key=lambda rate: errors[rate])}")


def searched_rate(data_set: str, key: str) -> str:
    """Return the rate of the lowest training error of an earlier search."""
    path = RESULTS / f"{data_set}_rates.json"
    errors = json.loads(path.read_text())["training_error"].get(key) if path.exists() else None
    if not errors:
        raise SystemExit(f"no rate of {key} has been searched: run with --search, or give --rate")
    return min(errors, key=lambda rate: errors[rate])


def run(
    data_set: str, key: str, data: str, rate: str, further: list[str], seed: int
) -> dict[str, Any]:
    """Train for ten passes, measure, and write the result."""
    settings = long_settings(data_set, rate, further)
    words = ["python benchmarks/curves.py --set", data_set, key, "--data DIR --rate", rate]
    path, name = RESULTS / f"{data_set}_{key}.json", "long"
    if seed:
        settings, words = [*settings, f"seed={seed}"], [*words, f"--seed {seed}"]
        path, name = RESULTS / "seeds" / f"{data_set}_{key}_{seed}.json", f"long-{seed}"
        path.parent.mkdir(exist_ok=True)
    recipe = make_recipe(data_set, key, data, settings)
    if path.is_file():
        refuse_others(path, recipe)
    folder = train(data_set, key, data, settings, name)
    command = " ".join([*words, *(["--settings", *further] if further else [])])
    result = {"command": command} | measure(folder, data)
    if seed:  # of a model that is not installed: nothing to verify
        result["protocol"] = result.pop("measured")[0]["protocol"]
    write(path, result)
    return result


def long_settings(data_set: str, rate: str, further: list[str]) -> list[str]:
    """Return the settings of ten passes."""
    chosen = SETS[data_set]
    settings = [f"train.learning_rate={rate}", f"train.steps={chosen['steps']}"]
    return [*settings, f"train.warmup_steps={chosen['warmup']}", "train.keep_last=100", *further]


def refuse_others(path: Path, recipe: TokenizerRecipe) -> None:
    """Refuse to write over a result of other settings, before hours are spent on it.

    Raises:
        ConfigError: If the file is of another recipe; names what differs.
    """
    earlier = json.loads(path.read_text())["recipe"]
    differing = differing_settings(earlier, without_places(recipe))
    if differing:
        raise ConfigError(
            *(
                f"{name}: {path} is of {old!r}, not {new!r}; move it away"
                for name, (old, new) in differing.items()
            )
        )


def time_steps(data_set: str, rounds: int = 5) -> dict[str, Any]:
    """Time one training step of every tokenizer, in turns: medians of processor seconds."""
    steps = {path.stem: training_step(data_set, path.stem) for path in recipes(data_set)}
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for number in range(rounds + 1):
        for key, step in steps.items():
            start = time.process_time()
            step()
            if number:  # the first of each warms up
                seconds[key].append(time.process_time() - start)
    return {
        "command": f"python benchmarks/curves.py --set {data_set} --cost",
        "seconds_per_step": {key: round(statistics.median(s), 4) for key, s in seconds.items()},
        "rounds": rounds,
        "machine": describe_machine(),
    }


def recipes(data_set: str) -> list[Path]:
    """Return the recipes that are compared on a data set."""
    return sorted((Path(__file__).parents[1] / "configs" / "compare" / data_set).glob("*.yaml"))


def training_step(data_set: str, key: str) -> Callable[[], None]:
    """Return a function for one step: forward, backward, Adam and the codebook's own edits."""
    recipe = load_tokenizer_recipe(f"compare/{data_set}/{key}")
    options = {name: value for name, value in recipe.tokenizer.items() if name != "name"}
    model = load_tokenizer(recipe.tokenizer["name"], **options).train()
    optimizer = torch.optim.Adam(model.parameters())
    size, channels = recipe.tokenizer["image_size"], recipe.tokenizer["in_channels"]
    images = torch.rand(recipe.train.batch_size, channels, size, size) * 2 - 1

    def step() -> None:
        output = model(images)
        loss = torch.stack(list(output.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step([optimizer])

    return step


def make_recipe(data_set: str, key: str, data: str, settings: list[str]) -> TokenizerRecipe:
    """Return the recipe of a run."""
    overrides = [("data.path", data), *SETTINGS, *settings]
    return load_tokenizer_recipe(f"compare/{data_set}/{key}", overrides)


def without_places(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return a recipe's sections as a result has them: without folders of one machine."""
    sections = recipe.model_dump(mode="json", exclude={"output"})
    sections["data"].pop("path")
    return sections


def train(data_set: str, key: str, data: str, settings: list[str], name: str) -> Path:
    """Train, or go on training, and return the folder of the run."""
    recipe = make_recipe(data_set, key, data, settings)
    prefix = "" if data_set == "cifar10" else f"{data_set}-"
    folder = Path("runs", "curves", f"{prefix}{key}-{name}")
    with messages.silenced():
        train_tokenizer(recipe, folder, resume="auto")
    return folder


def measure(folder: Path, data: str) -> dict[str, Any]:
    """Measure every checkpoint of a run, and its final model."""
    recipe = load_tokenizer_recipe(folder / "recipe.yaml")
    options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
    model, curve = load_tokenizer(recipe.tokenizer["name"], **options), []
    configs = [test_data(recipe, data, limit) for limit in (CURVE_IMAGES, None)]
    some, everything = (build_dataset(config, train=False) for config in configs)
    found: dict[str, Any] = {}
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        manifest = read_manifest(checkpoint)
        if manifest["step"] % recipe.train.save_every and manifest["step"] < recipe.train.steps:
            continue  # written because the training was interrupted there
        load_model(model, checkpoint / "model.safetensors")
        found = measure_images(model, some)
        point = {"step": manifest["step"], "seconds": round(manifest["seconds"], 1)}
        curve.append(point | {name: found[name] for name in DRAWN})
        print(point["step"], f"{found['psnr']:.2f} dB")
    trained = load_tokenizer(folder / "model")
    final = measure_images(trained, everything)
    claims = [claim(trained, configs[1], everything, final, KEPT)]
    if curve and curve[-1]["step"] == recipe.train.steps:
        claims.append(claim(trained, configs[0], some, found, DRAWN))
    return {
        "recipe": without_places(recipe),
        "curve_images": CURVE_IMAGES,
        "curve": curve,
        "final_images": len(everything),
        "final": {name: final[name] for name in KEPT},
        "measured": claims,
        "machine": describe_machine(),
    }


def measure_images(model: ImageTokenizer, images: ImageDataset) -> dict[str, Any]:
    """Measure a model, and hash the images with which."""
    return evaluate_reconstruction(model, images, more={REFERENCE_IMAGES: ImageHash()})


def claim(
    model: ImageTokenizer,
    config: DataConfig,
    images: ImageDataset,
    found: dict[str, Any],
    names: tuple[str, ...],
) -> dict[str, Any]:
    """Return numbers with all that ``spectok eval --verify`` needs to measure them again."""
    protocol = make_protocol(images, "float32", 0, {})
    values = {name: found[name] for name in names}
    data, pixels = data_section(config), found[REFERENCE_IMAGES]
    return Claim(model_fingerprint(model), data, protocol, values, pixels).to_dict()


def test_data(recipe: TokenizerRecipe, data: str, limit: int | None) -> DataConfig:
    """Return the test images at the size of a recipe."""
    size = {"image_size": recipe.data.image_size, "channels": recipe.data.channels}
    return DataConfig(name=recipe.data.name, path=data, split="test", limit=limit, **size)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
