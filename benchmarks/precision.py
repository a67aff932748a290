"""What a training step costs in float32, under bf16 autocast and compiled: seconds and memory.

    python benchmarks/precision.py                             # on a GPU, if there is one
    python benchmarks/precision.py tokenizers/vqvae/cifar10 --batch-size 256 --steps 50
    python benchmarks/precision.py vqvae/digits prior:digits --batch-size 8 --steps 3

A step is that of the trainer without data loading: losses, backward pass, optimiser, edits of
codes. Random images or tokens of a recipe's shapes take the place of data. Each variant runs in a
process of its own, whose first steps, in which kernels are chosen and compiled, do not count. Peak
memory is what torch has allocated on a GPU, and the process's resident set without one.
Processors without bf16 instructions compute it many times slower than float32: on these keep to a
small recipe and a few steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from one_line import run_program
from torch import Tensor, nn

from spectok.loading import load_tokenizer
from spectok.machine import describe_machine, forget_peak_memory, peak_memory_bytes
from spectok.training.optimizer import make_optimizer
from spectok.training.recipe import load_tokenizer_recipe
from spectok.training.train_config import TrainConfig

RECIPES = ("tokenizers/vqvae/cifar10", "tokenizers/qgvae/cifar10", "prior:cifar10")
WARM_UP = 3
VARIANTS = {
    "fp32": {},
    "tf32": {"tf32": True},
    "bf16": {"bf16": True},
    "fp32 compiled": {"compiled": True},
    "bf16 compiled": {"bf16": True, "compiled": True},
}


def main() -> None:
    """Measure each recipe in each variant, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="tokenizers', or prior:DATA")
    parser.add_argument("--batch-size", type=int, help="by default the recipe's")
    parser.add_argument("--steps", type=int, default=20, help="steps that count (default: 20)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    command = " ".join(["python benchmarks/precision.py", *sys.argv[1:]])
    result: dict[str, Any] = {"command": command, "machine": describe_machine()}
    result |= {"steps": arguments.steps, "runs": []}
    for recipe in arguments.recipes:
        for variant in arguments.variants:
            job = (recipe, variant, arguments.batch_size, arguments.steps)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                run = pool.apply(measure, job)
            result["runs"].append(run)
            seconds = run.get("seconds_per_step")
            shown = run["error"] if seconds is None else f"{seconds:.4f} s, {run['peak_mib']} MiB"
            print(f"{recipe:32s} {variant:14s} {shown}", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(name: str, variant: str, batch_size: int | None, steps: int) -> dict[str, Any]:
    """Train one recipe for a few steps; return the median seconds of one, and the peak memory."""
    torch.manual_seed(0)
    how, on_gpu = VARIANTS[variant], torch.cuda.is_available()
    run: dict[str, Any] = {"recipe": name, "variant": variant}
    if "tf32" in how:
        if not on_gpu:
            return run | {"error": "needs a GPU"}
        torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if on_gpu else "cpu")
    network, batch, config = prepare(name, batch_size)
    model: Any = network.to(device).train()
    batch = batch.to(device)
    optimizer = make_optimizer(model, config)
    forward: Any = torch.compile(model) if "compiled" in how else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in how):
            losses = forward(batch).losses
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        if hasattr(model, "before_step"):
            model.before_step()
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(model, "after_step"):
            model.after_step([optimizer])

    try:
        for _ in range(WARM_UP):
            step()
        forget_peak(on_gpu)
        seconds = [timed(step, on_gpu) for _ in range(steps)]
    except RuntimeError as error:
        return run | {"error": str(error).strip().splitlines()[0]}
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes() or 0
    return run | {
        "batch_size": len(batch),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_step": statistics.median(seconds),
        "peak_mib": round(peak / 2**20),
    }


def prepare(name: str, batch_size: int | None) -> tuple[nn.Module, Tensor, TrainConfig]:
    """Build a recipe's model and a random batch.

    Args:
        name: A tokenizer's recipe, or ``prior:DATA`` for the smallest gpt on ``qgvae/DATA``.
        batch_size: Images in the batch; None: the recipe's.
    """
    prior, name = name.startswith("prior:"), name.replace("prior:", "tokenizers/qgvae/")
    recipe = load_tokenizer_recipe(name)
    options = dict(recipe.tokenizer)
    tokenizer = load_tokenizer(options.pop("name"), **options)
    count = batch_size or recipe.train.batch_size
    if not prior:
        return tokenizer, torch.rand(count, *tokenizer.image_shape) * 2 - 1, recipe.train
    from spectok_generation.priors import create_prior

    sizes = torch.tensor(tokenizer.token_spec.vocab_sizes)
    tokens = (torch.rand(count, len(sizes)) * sizes).long()
    return create_prior("gpt", tokenizer.token_spec), tokens, recipe.train


def timed(step: Any, on_gpu: bool) -> float:
    """Return the seconds of one step, until the device has done it."""
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forget_peak(on_gpu: bool) -> None:
    """Start measuring the peak from here."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak_memory()


if __name__ == "__main__":
    run_program(main)
