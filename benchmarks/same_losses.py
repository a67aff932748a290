"""Whether two versions of spectok train alike, bit for bit: what a refactoring has to show.

    python benchmarks/same_losses.py v0.1.0                  # all recipes, against the files here
    python benchmarks/same_losses.py HEAD~3 vqvae prior_gpt --steps 20
    python benchmarks/same_losses.py v0.1.0 --changed vqgan  # whose network was changed on purpose

Both versions train each smoke recipe of a tokenizer or a prior, from their own sources and in this
environment's Python, with one line of the log per step; the ``loss`` columns must be identical. The
exit status is 1 if any differs that is not named in ``--changed``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import yaml
from one_line import run_program

Losses = dict[str, list[dict[str, float]]]
"""Recipe -> losses by name, for each step."""

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("core", "plugins", "generation")
SETTINGS = ("train.log_every=1", "train.sample_every=null", "train.save_every=100000")
DRIVER = """
import sys
from spectok.cli import main
output, *names = sys.argv[1:]
for name in names:
    kind = ["prior"] if name.startswith("prior") else []
    try:
        main(["train", *kind, f"smoke/{name}", "--output", f"{output}/{name}", *SETTINGS])
    except SystemExit as done:
        if done.code:
            print(f"{name} failed", file=sys.stderr)
"""


def main() -> None:
    """Train with both versions and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="revision to compare with")
    parser.add_argument("names", nargs="*", help="smoke recipes; by default all of both versions")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps (default: 200)")
    parser.add_argument("--changed", nargs="*", default=[], help="recipes that may differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder, "before")
        export(arguments.before, before)
        names = arguments.names or sorted(smoke_recipes(before) & smoke_recipes(ROOT))
        losses = [
            train(tree, names, arguments.steps, Path(folder, kind))
            for kind, tree in (("runs-before", before), ("runs-after", ROOT))
        ]
    wrong = report(names, *losses, arguments.steps)
    unexplained = sorted(set(wrong) - set(arguments.changed))
    sys.exit(f"different: {', '.join(unexplained)}" if unexplained else 0)


def export(revision: str, folder: Path) -> None:
    """Write the files of a revision into a folder."""
    archive = ["git", "-C", str(ROOT), "archive", "--format=tar", revision]
    content = subprocess.run(archive, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(folder, filter="data")


def smoke_recipes(tree: Path) -> set[str]:
    """Return the names of the smoke recipes of tokenizers and priors."""
    found = set()
    for path in (tree / "configs" / "smoke").glob("*.yaml"):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "prior" in recipe or isinstance(recipe.get("tokenizer"), dict):
            found.add(path.stem)
    return found


def train(tree: Path, names: list[str], steps: int, output: Path) -> Losses:
    """Train recipes with the sources of a checkout, and return the losses of every step."""
    metadata = output / "metadata"
    describe_package(tree, metadata)
    path = [str(metadata), *(str(tree / source) for source in SOURCES)]
    environment = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    settings = f"SETTINGS = {[*SETTINGS, f'train.steps={steps}']!r}\n"
    command = [sys.executable, "-W", "ignore", "-c", settings + DRIVER, str(output), *names]
    with (output / "output.txt").open("w") as log:
        subprocess.run(
            command, env={**os.environ, **environment}, stdout=log, check=True, cwd=output
        )
    logs = {name: output / name / "log.jsonl" for name in names}
    return {
        name: [losses_of(json.loads(line)) for line in log.read_text().splitlines()]
        for name, log in logs.items()
        if log.is_file()
    }


def losses_of(line: dict[str, float]) -> dict[str, float]:
    """Return the losses in a line of a log; the discriminator's too, where one takes turns."""
    return {name: value for name, value in line.items() if "loss" in name}


def describe_package(tree: Path, folder: Path) -> None:
    """Write the metadata by which Python finds the plugins of a checkout alone."""
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(text)
    points = project["entry-points"]["spectok.plugins"]
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[spectok.plugins]\n{lines}")


def report(names: list[str], before: Losses, after: Losses, steps: int) -> list[str]:
    """Print one line for each recipe; return the names of those that differ."""
    wrong = []
    for name in names:
        old, new = before.get(name, []), after.get(name, [])
        differing = [i for i, (a, b) in enumerate(zip(old, new), 1) if a != b]
        if len(old) == len(new) == steps and not differing:
            print(
                f"{name:16s} identical over {steps} steps, last loss {new[-1].get('loss', 0):.6g}"
            )
            continue
        wrong.append(name)
        where = f"from step {differing[0]}" if differing else f"{len(old)} and {len(new)} steps"
        print(f"{name:16s} DIFFERENT: {where}")
    return wrong


if __name__ == "__main__":
    run_program(main)
