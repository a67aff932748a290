"""Search in a tree of codes, side by side with flat search. Writes ``results/tree_search.json``.

    python benchmarks/tree_search.py

Flat: the nearest of all leaves' codes with :func:`spectok.quantizers.nearest_codes`. Tree: the leaf
that HR-VQVAE's walk reaches; 4,096 leaves with 16 children per node on 3 levels compare each vector
with 48 codes. The two answer different questions, nearest code and greedy path, at equal bits. The
walk is therefore checked for exactness against its own plain form, in which every vector gathers
the codes of its parent; that form is timed too.

Then whole reconstructions, images to tokens to images, of ``compare/cifar10`` with HR-VQVAE's
8·8·8 leaves, VQ-VAE and VQ-VAE-2, and the share of HR-VQVAE's that its search takes: the paper's
Table 2. Weights are those of a new model, which cost the same time.

All run alternately in one process on the same vectors or images; seconds of the processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import torch
from one_line import run_program

from spectok import load_tokenizer
from spectok.machine import describe_machine
from spectok.quantizers import nearest_codes
from spectok.training import load_tokenizer_recipe
from spectok_hrvqvae.start import hierarchical_kmeans
from spectok_hrvqvae.tree import descend, partial_sums

SIZES = {"vectors": 16384, "dim": 64}
TREES = ([4, 4, 4], [8, 8, 8], [16, 16, 16])
RECONSTRUCTED = ("hrvqvae", "vqvae", "vqvae2")
IMAGES = 64


def plain_descend(z, codebooks, branching):
    """Walk down with a copy of the parent's codes for each vector."""
    node = torch.zeros(len(z), dtype=torch.int64)
    for codes, m in zip(codebooks, branching):
        children = codes.view(-1, m, codes.shape[1])[node]  # (P, m, D)
        products = (children @ z.unsqueeze(2)).squeeze(2)
        node = node * m + (children.square().sum(-1) - 2 * products).argmin(-1)
        z = z - codes[node]
    return node


def make_calls(branching):
    """Return the callables; each gives the number of a leaf per vector."""
    generator = torch.Generator().manual_seed(0)
    fitted, z = torch.randn(2, SIZES["vectors"], SIZES["dim"], generator=generator)
    codebooks = hierarchical_kmeans(fitted, branching)
    flat_codes = partial_sums(z.new_zeros(1, SIZES["dim"]), codebooks, branching)[-1]
    return {
        "flat": lambda: nearest_codes(z.unsqueeze(0), flat_codes.unsqueeze(0))[0],
        "tree_plain": lambda: plain_descend(z, codebooks, branching),
        "tree": lambda: descend(z, codebooks, branching)[1],
    }


def time_alternately(calls, rounds):
    """Return the results of the calls, and the least and the median seconds of each."""
    results = {name: call() for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    best = {name: min(times) for name, times in seconds.items()}
    return results, best, {name: sorted(t)[len(t) // 2] for name, t in seconds.items()}


def measure_search(branching, rounds):
    """Time all forms of search in one tree."""
    indices, best, median = time_alternately(make_calls(branching), rounds)
    return {
        "branching": branching,
        "codes": math.prod(branching),
        "best_seconds": best,
        "median_seconds": median,
        "speed_ratio": best["flat"] / best["tree"],
        "speed_ratio_to_plain": best["tree_plain"] / best["tree"],
        "identical_to_plain": bool(torch.equal(indices["tree"], indices["tree_plain"])),
        "same_leaf_as_flat": float((indices["tree"] == indices["flat"]).double().mean()),
    }


@torch.no_grad()
def measure_reconstruction(rounds):
    """Time whole reconstructions, and the part of the tree's search."""
    images = torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = {}
    for key in RECONSTRUCTED:
        section = load_tokenizer_recipe(f"compare/cifar10/{key}").tokenizer
        options = {name: value for name, value in section.items() if name != "name"}
        models[key] = load_tokenizer(section["name"], **options).eval()
    tree = models["hrvqvae"]
    z = tree.token_space.to_vectors(tree.encode_latents(images)).flatten(0, 1)
    quantizer = tree.quantizer
    calls = {key: partial(reconstruct, model, images) for key, model in models.items()}
    calls["search"] = partial(descend, z, quantizer.codebooks, quantizer.branching)
    _, best, median = time_alternately(calls, rounds)
    return {
        "images": IMAGES,
        "best_seconds": best,
        "median_seconds": median,
        "speed_against_vqvae": best["vqvae"] / best["hrvqvae"],
        "speed_against_vqvae2": best["vqvae2"] / best["hrvqvae"],
        "share_of_search": best["search"] / best["hrvqvae"],
    }


def reconstruct(model, images):
    """Return images from their tokens alone."""
    return model.decode(model.encode(images))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/tree_search.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {
        "command": "python benchmarks/tree_search.py",
        "machine": describe_machine(),
        **SIZES,
        "search": [measure_search(branching, arguments.rounds) for branching in TREES],
        "reconstruction": measure_reconstruction(arguments.rounds),
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_program(main)
