"""Search in a tree of codes, side by side with flat search. Writes ``results/tree_search.json``.

    python benchmarks/tree_search.py

Flat: the nearest of 4,096 codes with :func:`spectok.quantizers.nearest_codes`. Tree: the leaf that
HR-VQVAE's walk reaches in a tree of 4,096 leaves, with 16 children per node on 3 levels, comparing
each vector with 48 codes. The two answer different questions, nearest code and greedy path, at
equal bits. The walk is therefore checked for exactness against its own plain form, in which every
vector gathers the codes of its parent; that form is timed too.

All run alternately in one process on the same vectors.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch

from spectok.quantizers import nearest_codes
from spectok_hrvqvae.start import hierarchical_kmeans
from spectok_hrvqvae.tree import descend, partial_sums

SIZES = {"vectors": 16384, "dim": 64, "branching": [16, 16, 16]}


def plain_descend(z, codebooks, branching):
    """Walk down with a copy of the parent's codes for each vector."""
    node = torch.zeros(len(z), dtype=torch.int64)
    for codes, m in zip(codebooks, branching):
        children = codes.view(-1, m, codes.shape[1])[node]  # (P, m, D)
        products = (children @ z.unsqueeze(2)).squeeze(2)
        node = node * m + (children.square().sum(-1) - 2 * products).argmin(-1)
        z = z - codes[node]
    return node


def make_calls():
    """Return the three callables; each gives one number of 0 to 4,095 per vector."""
    generator = torch.Generator().manual_seed(0)
    fitted, z = torch.randn(2, SIZES["vectors"], SIZES["dim"], generator=generator)
    branching = SIZES["branching"]
    codebooks = hierarchical_kmeans(fitted, branching)
    flat_codes = partial_sums(z.new_zeros(1, SIZES["dim"]), codebooks, branching)[-1]
    return {
        "flat": lambda: nearest_codes(z.unsqueeze(0), flat_codes.unsqueeze(0))[0],
        "tree_plain": lambda: plain_descend(z, codebooks, branching),
        "tree": lambda: descend(z, codebooks, branching)[1],
    }


def measure(rounds: int) -> dict:
    """Time all forms alternately."""
    calls = make_calls()
    indices = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "best_seconds": best,
        "median_seconds": {n: sorted(t)[len(t) // 2] for n, t in seconds.items()},
        "speed_ratio": best["flat"] / best["tree"],
        "speed_ratio_to_plain": best["tree_plain"] / best["tree"],
        "identical_to_plain": bool(torch.equal(indices["tree"], indices["tree_plain"])),
        "same_leaf_as_flat": float((indices["tree"] == indices["flat"]).double().mean()),
    }


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
        "machine": f"{arguments.threads} threads of an {platform.machine()} CPU, no GPU",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "codes": math.prod(SIZES["branching"]),
        **SIZES,
        **measure(arguments.rounds),
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
