"""Processor time until a command answers or a script can begin, against ``import torch`` alone.

    python benchmarks/start.py                              # the files here
    python benchmarks/start.py --before v0.1.0 --out benchmarks/results/start.json

Each line is run in a new interpreter, once to compile what is not compiled yet and then several
times; the median of user and system time is told, with every single value in the JSON file. What
other programs do on the machine changes it little, unlike the time on a clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from one_line import run_program
from same_losses import ROOT, SOURCES, describe_package, export

from spectok.machine import describe_machine

TORCH = "import torch"
SCRIPTS = (TORCH, "import spectok", "from spectok import load_tokenizer")
ANSWERED = (
    "--help",
    *(f"list {kind}" for kind in ("tokenizers", "models", "datasets", "recipes", "plugins")),
    "info vqvae",
)
REFUSED = (
    "info vqave",  # a misspelt key
    "info runs/nothing",  # a folder that is not there
    "train vqvae tokenizer.codebok_size=3",  # a misspelt setting
    "trian vqvae",  # no such command
    "train vqvae/digit",  # a misspelt recipe
)


def main() -> None:
    """Measure the files here and, if asked, those of an earlier revision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", help="revision to compare with")
    parser.add_argument("--runs", type=int, default=5, help="runs of each line (default: 5)")
    parser.add_argument("--out", type=Path, help="JSON file for the times")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/start.py", *sys.argv[1:]]),
        "what": "seconds of processor time, user and system, of a new interpreter",
        "runs": arguments.runs,
        "machine": describe_machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.before:
            tree = Path(folder, "tree")
            export(arguments.before, tree)
            result["revision_before"] = arguments.before
            result["before"] = measure(tree, arguments.runs, Path(folder, "before"))
        result["after"] = measure(ROOT, arguments.runs, Path(folder, "after"))
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def measure(tree: Path, runs: int, output: Path) -> dict[str, Any]:
    """Return the times of each line with the sources of a checkout.

    Args:
        tree: The checkout.
        runs: How often each is measured.
        output: An empty folder to run in.

    Returns:
        Line -> median, its ratio to ``import torch``, and all times, in seconds.
    """
    metadata = output / "metadata"
    describe_package(tree, metadata)
    path = [str(metadata), *(str(tree / source) for source in SOURCES)]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path)}
    lines = {line: ["-c", line] for line in SCRIPTS}
    commands = (*ANSWERED, *REFUSED)
    lines |= {f"spectok {line}": ["-m", "spectok", *line.split()] for line in commands}
    found: dict[str, Any] = {}
    for line, words in lines.items():
        refused = line.removeprefix("spectok ") in REFUSED
        times = [seconds(words, environment, output, 2 if refused else 0) for _ in range(runs + 1)]
        median = statistics.median(times[1:])
        torch = found.get(TORCH, {}).get("median", median)
        ratio = round(median / torch, 2)
        found[line] = {"median": round(median, 2), "to_torch": ratio, "all": times[1:]}
    return found


def seconds(words: list[str], environment: dict[str, str], folder: Path, status: int) -> float:
    """Run Python once and return the processor time it took.

    Raises:
        RuntimeError: If it ends with another status than it should.
    """
    before = os.times()
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True
    )
    after = os.times()
    if done.returncode != status:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")
    user = after.children_user - before.children_user
    return round(user + after.children_system - before.children_system, 2)


def show(result: dict[str, Any]) -> None:
    """Print medians before and after."""
    for line, now in result["after"].items():
        then = result.get("before", {}).get(line)
        earlier = f"{then['median']:6.2f} s" if then else "       -"
        print(f"{line:46s} {earlier} {now['median']:6.2f} s  {now['to_torch']:5.2f} × import torch")


if __name__ == "__main__":
    run_program(main)
