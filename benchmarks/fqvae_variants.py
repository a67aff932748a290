"""FQ-VAE's parts switched one at a time, and a CVQ-VAE grid beside it, at equal bits and steps.

    python benchmarks/fqvae_variants.py                 # digits, all variants, one after the other
    python benchmarks/fqvae_variants.py default literal --steps 200
    python benchmarks/fqvae_variants.py default cvqvae --data cifar10 --path DIR --limit 8000

Every variant is the recipe ``fqvae/<data>`` with the overrides below, trained with the ``train:``
section of that recipe; reconstructions come from indices alone, on the test split. Results are
merged by name into ``results/fqvae_<data>.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from spectok.config import TokenizerRecipe, load_recipe
from spectok.data import build_dataset
from spectok.loading import load_tokenizer
from spectok.metrics import evaluate_reconstruction
from spectok.training.tokenizer import train_tokenizer

TOKENIZER, QUANTIZER = "tokenizer.", "tokenizer.quantizer."
LITERAL = {
    TOKENIZER + "codebook_dim": None,
    TOKENIZER + "filter_init": "noise",
    TOKENIZER + "network": "conv",
    TOKENIZER + "channels": 64,
    QUANTIZER + "num_codebooks": 1,
    QUANTIZER + "anchor": "closest",
}
GRID = {
    TOKENIZER + "extractor": "convolution",
    TOKENIZER + "codebook_dim": 16,
    TOKENIZER + "channels": 80,
    TOKENIZER + "num_blocks": 2,
    TOKENIZER + "graph_gate": None,
    QUANTIZER + "name": "cvq",
}
CLOSEST = {QUANTIZER + "anchor": "closest"}
VARIANTS: dict[str, dict] = {
    "default": {},
    "cvqvae": GRID,
    "literal": LITERAL,
    "literal, a codebook per token": LITERAL | {QUANTIZER + "num_codebooks": None},
    "convolutions, no U-Net": {TOKENIZER + "network": "conv", TOKENIZER + "channels": 64},
    "filters start as random phases": {TOKENIZER + "filter_init": "phase"},
    "filters start as translations": {TOKENIZER + "filter_init": "shifts"},
    "one codebook for all tokens": {QUANTIZER + "num_codebooks": 1},
    "one projection for all tokens": {TOKENIZER + "num_heads": 1},
    "twice the numbers per token": {TOKENIZER + "codebook_dim": 8},
    "4 channels, half the filters": {TOKENIZER + "latent_channels": 4},
    "no graph gate": {TOKENIZER + "graph_gate": None},
    "decay by usage alone": {QUANTIZER + "decay_rule": "cvq"},
    "decay as printed": {QUANTIZER + "decay_rule": "printed"},
    "closest anchors": CLOSEST,
    "closest anchors, decay by usage": CLOSEST | {QUANTIZER + "decay_rule": "cvq"},
    "16 codebooks by gradient": {QUANTIZER + "name": "vq", QUANTIZER + "num_codebooks": 16},
    "16 codebooks of running means": {QUANTIZER + "name": "ema", QUANTIZER + "num_codebooks": 16},
}


def run(name: str, recipe: TokenizerRecipe) -> dict:
    """Train one variant, and measure its reconstructions of the test split."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        train_tokenizer(recipe.tokenizer, recipe.data, recipe.train, output, seed=recipe.seed)
        model = load_tokenizer(output / "model")
    held_out = recipe.data.model_copy(update={"split": "test", "limit": None})
    measured = evaluate_reconstruction(model, build_dataset(held_out))
    kept = ("psnr", "ssim", "codebook_usage", "perplexity", "bits_per_image", "parameters")
    result = {key: measured[key] for key in kept}
    steps, images = recipe.train.steps, recipe.data.limit or "all"
    seconds = round(time.perf_counter() - start)
    return result | {"steps": steps, "training_images": images, "seconds": seconds}


def main() -> None:
    """Run the variants that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"among {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--data", default="digits", help="the recipe fqvae/<data>")
    parser.add_argument("--path", help="local images of the data set")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--steps", type=int, help="training steps; default: the recipe's")
    arguments = parser.parse_args()
    given = {
        "data.path": arguments.path,
        "data.limit": arguments.limit,
        "train.steps": arguments.steps,
    }
    common = {key: value for key, value in given.items() if value is not None}
    path = Path(__file__).parent / "results" / f"fqvae_{arguments.data}.json"
    for name in arguments.variants or VARIANTS:
        overrides = list((common | VARIANTS[name]).items())
        result = run(name, load_recipe(f"fqvae/{arguments.data}", overrides))
        results = json.loads(path.read_text()) if path.is_file() else {}
        results[name] = result | {"overrides": VARIANTS[name], "torch": torch.__version__}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name:36s} {result['psnr']:.2f} dB, perplexity {result['perplexity']:.1f}")


if __name__ == "__main__":
    main()
