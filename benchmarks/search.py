"""Nearest-code search, side by side with the usual methods. Writes ``results/search.json``.

    pip install -e '.[bench]'
    python benchmarks/search.py

1. One codebook per position: :func:`spectok.quantizers.nearest_codes` against the difference tensor
   ``(B, positions, K, D)`` of the textbook form.
2. One shared codebook: the ``ema`` quantizer's forward pass in training mode against
   ``vector_quantize_pytorch.VectorQuantize`` in training mode with the same codes.

Both sides run alternately in one process on the same vectors. Peak memory is the growth of the
process's resident set while a call runs, read in a fresh process each.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
from one_line import run_program

import spectok
from spectok.quantizers import nearest_codes

PER_POSITION = {"batch": 16, "positions": 64, "codes": 512, "dim": 64}
SHARED = {"vectors": 8192, "codes": 16384, "dim": 8}


def per_position_case():
    """Return the two callables of case 1; each gives indices."""
    size = PER_POSITION
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(size["positions"], size["batch"], size["dim"], generator=generator)
    codes = torch.randn(size["positions"], size["codes"], size["dim"], generator=generator)

    def naive():
        return (z.unsqueeze(2) - codes.unsqueeze(1)).square().sum(-1).argmin(-1)

    return {"naive": naive, "spectok": lambda: nearest_codes(z, codes)}


def shared_case():
    """Return the two callables of case 2; each gives indices."""
    from vector_quantize_pytorch import VectorQuantize

    size = SHARED
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, size["vectors"] // 8, size["dim"], generator=generator)
    theirs = VectorQuantize(dim=size["dim"], codebook_size=size["codes"], kmeans_init=False).train()
    ours = spectok.create_quantizer(
        "ema",
        dim=size["dim"],
        num_tokens=size["vectors"] // 8,
        codebook_size=size["codes"],
        revive_below=0.0,
    ).train()
    codes = torch.randn(1, size["codes"], size["dim"], generator=generator)
    theirs._codebook.embed.data.copy_(codes)
    ours.codebook.copy_(codes)
    theirs._codebook.initted.fill_(True)

    def reference():
        theirs._codebook.embed.data.copy_(codes)  # its forward pass has moved them
        return theirs(z)[1]

    return {"vector_quantize_pytorch": reference, "spectok": lambda: ours(z).indices.squeeze(-1)}


CASES = {"per_position": per_position_case, "shared": shared_case}


def peak_growth(call) -> int:
    """Return the growth of the resident set, in bytes, while a call runs."""
    process, done, peak = psutil.Process(), threading.Event(), 0
    start = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss - start)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return peak


def measure(case: str, rounds: int) -> dict:
    """Time both forms of one case alternately and measure their memory."""
    calls = CASES[case]()
    names = list(calls)
    indices = {name: calls[name]() for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(times) for name, times in seconds.items()}
    memory = {name: memory_in_fresh_process(case, name) for name in names}
    return {
        "best_seconds": best,
        "median_seconds": {n: sorted(t)[len(t) // 2] for n, t in seconds.items()},
        "peak_bytes": memory,
        "speed_ratio": best[names[0]] / best["spectok"],
        "memory_ratio": memory[names[0]] / memory["spectok"],
        "identical_indices": bool(torch.equal(indices[names[0]], indices["spectok"])),
    }


def memory_in_fresh_process(case: str, name: str) -> int:
    """Measure one call's memory in a process that has allocated nothing before."""
    command = [sys.executable, __file__, "--memory", case, name]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "NAME"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/search.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        case, name = arguments.memory
        print(peak_growth(CASES[case]()[name]))
        return
    report = {
        "command": "python benchmarks/search.py",
        "machine": f"{arguments.threads} thread(s) of a 2-core {platform.machine()} CPU, no GPU",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "per_position": PER_POSITION | measure("per_position", arguments.rounds),
        "shared": SHARED | measure("shared", arguments.rounds),
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_program(main)
