"""A training step of QG-VAE on CIFAR-10, by operation. Writes ``results/qgvae_step.json``.

    python benchmarks/qgvae_step.py --threads 1

The recipe ``qgvae/cifar10`` with batches of 16, against the same model in the form of the authors'
code, rebuilt here from its description: every residual block resizes and projects the network's
input and the positional code separately, and the quantizer forms the tensor of all differences
between vectors and codes, within autograd. Weights and batches are the same, and so are the tokens
and, but for rounding, the images. Both run alternately in one process. With one thread the clock
is the process's own time on the processor, which other programs disturb less.

What remains is convolution; the report also compares its speed with a large matrix product's.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from one_line import run_program
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from spectok.loading import load_tokenizer
from spectok.machine import describe_machine
from spectok.training.optimizer import make_optimizer
from spectok.training.recipe import load_tokenizer_recipe
from spectok_qgvae.quantizer import VoronoiQuantizer
from spectok_qgvae.unet import ConditionedBlock, ConditionedUNet

BATCH_SIZE = 16
KINDS = {"convolution": "convolution", "conv2d": "convolution", "group_norm": "normalisation"}


class AuthorsUNet(ConditionedUNet):
    """Gives every block the input and the positional code of all images, joined, at full size."""

    def forward(self, x):
        """Join them, then go on as before."""
        self.joined = torch.cat([x, self.position.expand(len(x), -1, -1, -1)], dim=1)
        return super().forward(x)

    def _at_level(self, inputs, level):
        return self.joined


class AuthorsBlock(ConditionedBlock):
    """Resizes and projects them separately."""

    def forward(self, x, inputs, position):
        """Apply the block; ``inputs`` and ``position`` are both the joined tensor."""
        projections = self.condition.of_input.weight, self.condition.of_position.weight
        resized = F.interpolate(inputs, size=x.shape[-2:], mode="nearest")
        x = x + F.conv2d(resized, torch.cat(projections, dim=1))
        return self.shortcut(x) + self.body(x)


class AuthorsQuantizer(VoronoiQuantizer):
    """Searches in the tensor of all differences."""

    def search(self, z):
        """Return the nearest code of each vector."""
        difference = z.unsqueeze(3) - self.codebook.transpose(1, 2).unsqueeze(0)  # (B, C, D, K)
        return difference.square().sum(2).argmin(-1)


AUTHORS = {
    ConditionedUNet: AuthorsUNet,
    ConditionedBlock: AuthorsBlock,
    VoronoiQuantizer: AuthorsQuantizer,
}


def build(authors: bool):
    """Return the model and its optimiser."""
    recipe = load_tokenizer_recipe("qgvae/cifar10")
    options = dict(recipe.tokenizer)
    torch.manual_seed(0)
    model = load_tokenizer(options.pop("name"), **options).train()
    if not authors:
        return model, make_optimizer(model, recipe.train)
    for module in model.modules():
        module.__class__ = AUTHORS.get(type(module), type(module))
    rates = {"lr": recipe.train.learning_rate, "weight_decay": recipe.train.weight_decay}
    return model, torch.optim.AdamW(model.parameters(), **rates)


def take_step(model, optimizer, images, precision=torch.float32) -> None:
    """Take a step as the trainer does."""
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        losses = model(images).losses
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    model.before_step()
    optimizer.step()
    optimizer.zero_grad()
    model.after_step([optimizer])


def operations(step, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the share of a step's time by kind; of the rest, each operation over 1 %."""
    with profile() as recorded:
        for _ in range(rounds):
            step()
    seconds = {e.key: e.self_cpu_time_total for e in recorded.key_averages()}
    total = sum(seconds.values())
    kinds = dict.fromkeys([*KINDS.values(), "everything else"], 0.0)
    others = {}
    for name, time_taken in sorted(seconds.items(), key=lambda item: -item[1]):
        kind = next((KINDS[part] for part in KINDS if part in name), "everything else")
        kinds[kind] += time_taken / total
        if kind == "everything else" and time_taken > 0.01 * total:
            others[name] = round(time_taken / total, 4)
    return {kind: round(share, 4) for kind, share in kinds.items()}, others


def convolution_gigaflop(step) -> float:
    """Return the arithmetic of a step's convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for name, count in counts.items() if "convolution" in str(name)) / 1e9


def alternate(calls: dict, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the best and the median time of each call."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    best = {name: min(times) for name, times in seconds.items()}
    return best, {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}


def measure(rounds: int) -> dict:
    """Time and profile both forms."""
    models = {"authors": build(True), "spectok": build(False)}
    torch.manual_seed(1)
    images = torch.rand(BATCH_SIZE, 3, 32, 32) * 2 - 1
    z = torch.randn(BATCH_SIZE, 64, 64)
    found = {name: model(images) for name, (model, _) in models.items()}
    steps = {name: lambda pair=pair: take_step(*pair, images) for name, pair in models.items()}
    steps["spectok, bfloat16 autocast"] = lambda: take_step(
        *models["spectok"], images, torch.bfloat16
    )
    searches = {name: lambda m=model: m.quantizer(z) for name, (model, _) in models.items()}
    square = torch.randn(2048, 2048)
    others = searches | {"product": lambda: square @ square}
    alternate(steps | others, 2)
    best, median = alternate(steps, rounds)
    other_best, _ = alternate(others, rounds)
    product_rate = 2 * 2048**3 / 1e9 / other_best.pop("product")
    profiles = {name: operations(steps[name], max(1, rounds // 4)) for name in models}
    first, second = found.values()
    arithmetic = convolution_gigaflop(steps["spectok"])
    convolution_seconds = best["spectok"] * profiles["spectok"][0]["convolution"]
    return {
        "parameters": sum(p.numel() for p in models["spectok"][0].parameters()),
        "best_seconds": best,
        "median_seconds": median,
        "share_of_authors_best": best["spectok"] / best["authors"],
        "share_of_authors_median": median["spectok"] / median["authors"],
        "quantizer_forward_best_seconds": other_best,
        "shares": {name: kinds for name, (kinds, _) in profiles.items()},
        "other_operations_over_1_percent": {name: o for name, (_, o) in profiles.items()},
        "convolution_gigaflop": arithmetic,
        "convolution_gigaflop_per_second": arithmetic / convolution_seconds,
        "matrix_product_gigaflop_per_second": product_rate,
        "equal_tokens": bool(torch.equal(first.indices, second.indices)),
        "images_differ_by": (first.reconstruction - second.reconstruction).abs().max().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/qgvae_step.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {
        "command": f"python benchmarks/qgvae_step.py --threads {arguments.threads} "
        f"--rounds {arguments.rounds}",
        "machine": describe_machine(),
        "load_average_before": os.getloadavg()[0],
        "batch_size": BATCH_SIZE,
        **measure(arguments.rounds),
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_program(main)
