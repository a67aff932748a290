"""How often the host waits for a GPU in a step of training, counted on a pretended one.

    python benchmarks/waits.py                                 # every smoke recipe, files here
    python benchmarks/waits.py --before v0.1.0 --out benchmarks/results/waits.json
    python benchmarks/waits.py vqvae prior_gpt --precision bf16

Each smoke recipe of a tokenizer or a prior is trained for a few steps by ``spectok train`` inside
:class:`spectok.testing.PretendDevice`, which computes on the CPU and names what a real GPU would
stall at. What is counted is inside the step: losses, backward pass, optimiser, edits of codes. The
first two steps, in which codebooks start on the data, are left out. Time is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from one_line import run_program
from same_losses import ROOT, SOURCES, describe_package, export, smoke_recipes

from spectok.machine import describe_machine

SKIPPED = 2
STEPS = 14
SETTINGS = (
    f"train.steps={STEPS}",
    "train.log_every=1000",
    "train.save_every=100000",
    "train.sample_every=null",
)
DRIVER = """
import importlib.util, json, sys
sources, precision, output, *names = sys.argv[1:]
for module in ("waiting", "pretend", "pretended_training"):  # of today
    name = f"spectok.testing.{module}"
    found = importlib.util.spec_from_file_location(name, f"{sources}/{module}.py")
    sys.modules[name] = loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
pretend = sys.modules["spectok.testing.pretend"]
training_on = sys.modules["spectok.testing.pretended_training"].training_on
from spectok.cli import main
counted = {}
for name in names:
    kind = ["prior"] if name.startswith("prior") else []
    words = ["train", *kind, f"smoke/{name}", "--output", f"{output}/{name}", *SETTINGS]
    with pretend.PretendDevice("cuda") as gpu, training_on(gpu):
        try:
            main([*words, f"train.mixed_precision={precision}"])
        except SystemExit as done:
            if done.code:
                print(f"{name} failed", file=sys.stderr)
                continue
    events = [e for e in gpu.events if e.model == gpu.model and e.step > SKIPPED]
    counted[name] = [[e.kind, e.operation, e.place, e.step] for e in events]
    json.dump(counted, open(f"{output}/counted.json", "w"))
"""


def main() -> None:
    """Count in the files here and, if asked, in an earlier revision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="smoke recipes; by default all")
    parser.add_argument("--before", help="revision to compare with")
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--out", type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    names = arguments.names or sorted(smoke_recipes(ROOT))
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/waits.py", *sys.argv[1:]]),
        "what": "waits of the host for a pretended GPU, per training step",
        "steps": f"{SKIPPED + 1} to {STEPS}",
        "mixed_precision": arguments.precision,
        "machine": describe_machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.before:
            tree = Path(folder, "tree")
            export(arguments.before, tree)
            result["revision_before"] = arguments.before
            result["before"] = count(tree, names, arguments.precision, Path(folder, "before"))
        result["after"] = count(ROOT, names, arguments.precision, Path(folder, "after"))
    show(names, result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def count(tree: Path, names: list[str], precision: str, output: Path) -> dict[str, Any]:
    """Train recipes with the sources of a checkout, and return the waits of each."""
    metadata = output / "metadata"
    describe_package(tree, metadata)
    path = [str(metadata), *(str(tree / source) for source in SOURCES)]
    environment = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    settings = f"SETTINGS, SKIPPED = {list(SETTINGS)!r}, {SKIPPED}\n"
    testing = str(ROOT / "core" / "spectok" / "testing")
    command = [sys.executable, "-W", "ignore", "-c", settings + DRIVER, testing, precision]
    with (output / "output.txt").open("w") as log:
        subprocess.run(
            [*command, str(output), *names],
            env={**os.environ, **environment},
            stdout=log,
            check=True,
            cwd=output,
        )
    counted = json.loads((output / "counted.json").read_text())
    return {name: summary(events) for name, events in counted.items()}


def summary(events: list[list[Any]]) -> dict[str, Any]:
    """Return the waits per step of one recipe, and how often each line waited in all."""
    by_step = Counter(step for *_, step in events)
    lines = Counter(f"{kind} by {operation} at {place}" for kind, operation, place, _ in events)
    return {
        "per_step": round(len(events) / (STEPS - SKIPPED), 2),
        "most_in_a_step": max(by_step.values(), default=0),
        "steps_without": STEPS - SKIPPED - len(by_step),
        "lines": dict(lines.most_common()),
    }


def show(names: list[str], result: dict[str, Any]) -> None:
    """Print the waits per step of each recipe, and where they are left."""
    for name in names:
        columns = [result.get(side, {}).get(name) for side in ("before", "after")]
        shown = [
            "-" if c is None else f"{c['per_step']:g} ({c['most_in_a_step']})" for c in columns
        ]
        print(f"{name:20s} {shown[0]:>14s} {shown[1]:>14s}")
        for line, times in (columns[1] or {}).get("lines", {}).items():
            print(f"    {times:4d} {line}")


if __name__ == "__main__":
    run_program(main)
