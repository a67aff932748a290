"""What HR-VQVAE's paper says of codebook size, depth and collapse, on the built-in digits.

    python benchmarks/hrvqvae_claims.py                       # everything: 81 runs of 600 steps
    python benchmarks/hrvqvae_claims.py --only size --seeds 1

``size`` (the paper's Fig. 6): 64, 512 and 4,096 leaves, in trees of three levels, with and without
their start by k-means, beside flat codebooks of as many codes: trained by gradients alone as in
VQ-VAE's paper, as running means with revival, and flat with the tree's own start and revival.
``depth`` (Fig. 4 and 5): 64 leaves on 1, 2, 3 and 6 levels, with and without the start. Networks,
data and schedule are those of ``hrvqvae/digits``. Errors are means over seeds, on the held-out
digits. Runs are kept under ``runs/hrvqvae_claims``; what is there is not trained again. Writes
``results/hrvqvae_claims.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from spectok import load_tokenizer, messages
from spectok.data import build_dataset
from spectok.evaluation import evaluate_reconstruction
from spectok.machine import describe_machine
from spectok.training import load_tokenizer_recipe, train_tokenizer

RECIPE = "hrvqvae/digits"
TREES = {64: "[4, 4, 4]", 512: "[8, 8, 8]", 4096: "[16, 16, 16]"}
DEPTHS = {1: "[64]", 2: "[8, 8]", 3: "[4, 4, 4]", 6: "[2, 2, 2, 2, 2, 2]"}
KEPT = ("psnr", "ssim", "mse", "codebook_usage", "distinct_usage", "perplexity", "bits_per_image")
RESULT = Path(__file__).parent / "results" / "hrvqvae_claims.json"


def tree(branching: str, **options: str) -> str:
    """Return the recipe section of a tree whose tokens are its leaves."""
    chosen = {"name": "tree", "branching": branching, "tokens": "leaf", **options}
    return f"{{{', '.join(f'{key}: {value}' for key, value in chosen.items())}}}"


def variants() -> dict[str, dict[str, tuple[int, str]]]:
    """Return for each part its variants: name -> codes and the recipe section ``quantizer``."""
    size: dict[str, tuple[int, str]] = {}
    for leaves, branching in TREES.items():
        size |= {
            f"tree, {leaves}": (leaves, tree(branching)),
            f"tree from random codes, {leaves}": (leaves, tree(branching, start="random")),
            f"flat with the tree's start, {leaves}": (leaves, tree(f"[{leaves}]")),
            f"flat vq, {leaves}": (leaves, "{name: vq}"),
            f"flat ema, {leaves}": (leaves, "{name: ema}"),
        }
    depth: dict[str, tuple[int, str]] = {}
    for levels, branching in DEPTHS.items():
        depth[f"{levels} levels"] = (64, tree(branching))
        depth[f"{levels} levels from random codes"] = (64, tree(branching, start="random"))
        depth[f"{levels} levels from random codes, no revival"] = (
            64,
            tree(branching, start="random", revive_below="0"),
        )
    return {"size": size, "depth": depth}


def main() -> None:
    """Train what is missing, measure, and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", choices=["size", "depth"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "command": "python benchmarks/hrvqvae_claims.py",
        "recipe": RECIPE,
        "steps": arguments.steps,
        "seeds": arguments.seeds,
    }
    for part, named in variants().items():
        if arguments.only in (None, part):
            rows = {}
            for name, (codes, quantizer) in named.items():
                rows[name] = summary(
                    [
                        run(part, name, codes, quantizer, s, arguments.steps)
                        for s in range(arguments.seeds)
                    ]
                )
                print(
                    f"{part}: {name}: {rows[name]['psnr']} dB, MSE {rows[name]['mse']}", flush=True
                )
            found[part] = rows
    RESULT.write_text(json.dumps(found | {"machine": describe_machine()}, indent=1) + "\n")
    print(RESULT)


def run(part: str, name: str, codes: int, quantizer: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one variant from one seed, unless it is there, and measure it."""
    folder = Path(
        "runs", "hrvqvae_claims", f"{part}-{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    )
    overrides = [
        "tokenizer.quantizer=null",
        f"tokenizer.quantizer={quantizer}",
        f"tokenizer.codebook_size={codes}",
        f"train.steps={steps}",
        f"seed={seed}",
        "train.sample_every=null",
        f"train.save_every={steps}",
    ]
    if not (folder / "model").is_dir():
        recipe = load_tokenizer_recipe(RECIPE, overrides)
        with messages.silenced():
            train_tokenizer(recipe, folder, resume="auto")
    data = load_tokenizer_recipe(folder / "recipe.yaml").data
    held_out = build_dataset(data.model_copy(update={"split": "test"}), train=False)
    result = evaluate_reconstruction(load_tokenizer(folder / "model"), held_out)
    return {key: result[key] for key in KEPT}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each number over the seeds, and the spread of PSNR."""
    means = {key: statistics.fmean(result[key] for result in results) for key in KEPT}
    rounded = {key: float(f"{value:.4g}") for key, value in means.items()}
    values = [round(result["psnr"], 2) for result in results]
    return rounded | {"psnr_of_each_seed": values}


if __name__ == "__main__":
    main()
