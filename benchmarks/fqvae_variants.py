"""FQ-VAE with one part switched at a time, and a CVQ-VAE grid, at equal bits and steps.

    python benchmarks/fqvae_variants.py                 # digits, all variants, one after the other
    python benchmarks/fqvae_variants.py default literal train.steps=200
    python benchmarks/fqvae_variants.py default cvqvae --data cifar10 data.path=DIR
    python benchmarks/fqvae_variants.py cvqvae --data cifar10 data.path=DIR train.learning_rate=1e-3

Every variant is the recipe ``fqvae/digits`` or ``compare/cifar10/fqvae`` with the overrides below,
trained with the ``train:`` section of that recipe; reconstructions come from indices alone, on the
test split. Results are merged, by name and further settings, into ``results/fqvae_<data>.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from one_line import run_program

from spectok.data import build_dataset
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import evaluate_reconstruction
from spectok.loading import load_tokenizer
from spectok.training import TokenizerRecipe, load_tokenizer_recipe, train_tokenizer

RECIPES = {"digits": "fqvae/digits", "cifar10": "compare/cifar10/fqvae"}
TOKENIZER, QUANTIZER = "tokenizer.", "tokenizer.quantizer."
COMMON: dict[str, dict] = {
    "digits": {},
    "cifar10": {TOKENIZER + "max_channels": 64, "train.learning_rate": 3e-3},
}
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
    TOKENIZER + "num_blocks": 2,
    TOKENIZER + "graph_gate": None,
    QUANTIZER + "name": "cvq",
}
GRID_WIDTHS = {
    "digits": {TOKENIZER + "codebook_dim": 16, TOKENIZER + "channels": 80},
    "cifar10": {TOKENIZER + "codebook_dim": 64, TOKENIZER + "channels": 128},  # as in VQ-VAE
}
CLOSEST = {QUANTIZER + "anchor": "closest"}
VARIANTS: dict[str, dict] = {
    "default": {},
    "cvqvae": GRID,
    "literal": LITERAL,
    "literal, Parseval weights": LITERAL | {TOKENIZER + "parseval_weights": True},
    "literal, scaled by the variance": LITERAL | {"losses.recon_scale": "data_variance"},
    "scaled by the variance": {"losses.recon_scale": "data_variance"},
    "literal, a codebook per token": LITERAL | {QUANTIZER + "num_codebooks": None},
    "convolutions, no U-Net": {TOKENIZER + "network": "conv", TOKENIZER + "channels": 64},
    "filters start as random phases": {TOKENIZER + "filter_init": "phase"},
    "filters start as translations": {TOKENIZER + "filter_init": "shifts"},
    "one codebook for all tokens": {QUANTIZER + "num_codebooks": 1},
    "a codebook per token": {QUANTIZER + "num_codebooks": None},
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


def overrides_of(name: str, data: str) -> dict:
    """Return what a variant changes in the recipe of a data set."""
    widths = GRID_WIDTHS[data] if VARIANTS[name] is GRID else {}
    return COMMON[data] | VARIANTS[name] | widths


def run(recipe: TokenizerRecipe) -> dict:
    """Train one variant, and measure its reconstructions of the test split."""
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        train_tokenizer(recipe, output)
        model = load_tokenizer(output / "model")
    held_out = recipe.data.model_copy(update={"split": "test", "limit": None})
    images = build_dataset(held_out, train=False)
    measured = evaluate_reconstruction(model, images)
    kept = ("psnr", "ssim", "mse", "codebook_usage", "perplexity", "bits_per_image", "parameters")
    result = {key: measured[key] for key in kept}
    return result | {
        "steps": recipe.train.steps,
        "learning_rate": recipe.train.learning_rate,
        "training_images": recipe.data.limit or "all",
        "protocol": make_protocol(images, "float32", 0, {}),
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - cpu),
    }


def main() -> None:
    """Run the variants that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "words",
        nargs="*",
        metavar="VARIANT|key=value",
        help=f"variants, by default all: {', '.join(VARIANTS)}; and settings for all of them",
    )
    parser.add_argument("--data", choices=RECIPES, default="digits")
    arguments = parser.parse_intermixed_args()
    settings = [word for word in arguments.words if "=" in word]
    variants = [word for word in arguments.words if "=" not in word]
    for name in variants:
        if name not in VARIANTS:
            parser.error(f"no variant {name!r}; there are: {', '.join(VARIANTS)}")
    path = Path(__file__).parent / "results" / f"fqvae_{arguments.data}.json"
    for name in variants or VARIANTS:
        overrides = overrides_of(name, arguments.data)
        recipe = load_tokenizer_recipe(RECIPES[arguments.data], [*overrides.items(), *settings])
        result = run(recipe)
        results = json.loads(path.read_text()) if path.is_file() else {}
        shown = [setting for setting in settings if not setting.startswith("data.path=")]
        label = ", ".join([name, *shown])
        results["command"] = "python benchmarks/fqvae_variants.py VARIANT --data DATA data.path=DIR"
        results[label] = result | {"overrides": overrides, "torch": torch.__version__}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{label:36s} {result['psnr']:.2f} dB, perplexity {result['perplexity']:.1f}")


if __name__ == "__main__":
    run_program(main)
