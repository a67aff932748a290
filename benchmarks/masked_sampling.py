"""Drawing 256 tokens in 8 steps against one by one. Writes ``results/masked_sampling.json``.

    python benchmarks/masked_sampling.py
    python benchmarks/masked_sampling.py --device cuda --batch-sizes 1 16 64 256

``maskgit`` and ``gpt`` have random weights, the same blocks and, but for one vector, as many of
them. They draw alternately in one process, with one thread on a CPU: ``gpt`` with its cache of keys
and values, 256 steps of one token each; ``maskgit`` 8 steps of all tokens, which is 8 times the
arithmetic. So what is gained depends on the machine and the batch: a step of few tokens waits for
the weights to be read (and, on a GPU, for its kernels to be started), a step of many for the
arithmetic.

Seconds are the best of all rounds: CPU time of the process on a CPU, where other programs then
matter less, and wall time until the tokens are on the CPU on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from one_line import run_program

from spectok import Level, TokenSpec
from spectok.machine import describe_machine
from spectok_generation import create_prior
from spectok_generation.masked import MaskedOptions, sample_masked
from spectok_generation.sampling import sample_batch

SPEC = TokenSpec((Level((16, 16), 1024),))
SIZES = {"num_layers": 6, "num_heads": 6, "width": 384, "dropout": 0.0}
NUM_CLASSES, NUM_STEPS = 10, 8
RESULTS = Path(__file__).parent / "results" / "masked_sampling.json"


def make(name: str, device: str) -> Any:
    """Build a prior with random weights, the same each time."""
    torch.manual_seed(0)
    return create_prior(name, SPEC, num_classes=NUM_CLASSES, **SIZES).eval().to(device)


def seconds(draw: Callable[[], torch.Tensor], clock: Callable[[], float]) -> float:
    """Return the time that drawing takes, until the tokens are on the CPU."""
    start = clock()
    draw().cpu()
    return clock() - start


def measure(priors: dict[str, Any], batch_size: int, rounds: int) -> dict[str, Any]:
    """Time both priors alternately on batches of one size."""
    device = priors["gpt"].device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    labels = torch.arange(batch_size) % NUM_CLASSES
    options = MaskedOptions(num_steps=NUM_STEPS)
    draws = {
        "gpt": lambda: sample_batch(priors["gpt"], range(batch_size), labels),
        "maskgit": lambda: sample_masked(
            priors["maskgit"], range(batch_size), labels, options=options
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(rounds):
        for name, draw in draws.items():
            taken[name].append(seconds(draw, clock))
    best = {name: min(times) for name, times in taken.items()}
    return {"seconds": best, "times_faster": best["gpt"] / best["maskgit"], "rounds": rounds}


def main() -> None:
    """Measure on one device; results of other devices stay as they were measured before."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    priors = {name: make(name, arguments.device) for name in ("gpt", "maskgit")}
    report = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    report |= {"command": "python benchmarks/masked_sampling.py --device DEVICE"}
    report |= {"sizes": SIZES, "tokens": SPEC.num_tokens, "codes": SPEC.max_vocab_size}
    report |= {"steps": NUM_STEPS}
    on_device: dict[str, Any] = {
        "command": f"python benchmarks/masked_sampling.py --device {arguments.device} "
        f"--batch-sizes {' '.join(map(str, arguments.batch_sizes))}",
        "machine": describe_machine(),
        "parameters": {
            n: sum(p.numel() for p in prior.parameters()) for n, prior in priors.items()
        },
    }
    for size in arguments.batch_sizes:
        on_device[f"batch of {size}"] = found = measure(priors, size, arguments.rounds)
        print(size, json.dumps(found), flush=True)
        report[arguments.device] = on_device
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
