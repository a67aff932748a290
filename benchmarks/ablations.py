"""Small trainings that differ in one thing, for the claims of ``docs/claims.md``.

    python benchmarks/ablations.py --list
    python benchmarks/ablations.py qgvae_tokens --data DIR            # every variant, every seed
    python benchmarks/ablations.py qgvae_tokens --data DIR --seeds 1 --only "vqvae, 4 tokens"
    python benchmarks/ablations.py qgvae_tokens --data DIR --steps 5  # a trial, kept apart

``ablations/NAME.yaml`` says what is compared and on what terms. Each variant is trained with the
library's own training on one thread, from each seed; all seeds of a file see the same held-out
images. Runs are kept under ``runs/ablations/NAME``: a finished run of the same recipe is not
trained again, an unfinished one goes on, and one of another recipe is put aside. After every run
``results/ablations/NAME.json`` has all runs that there are, and a table is printed at the end.
Numbers of an earlier one that it would lose stay beside it, in ``NAME.earlier.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ablation_files import Ablation, check_known, list_ablations, load_ablation, read_ablation
from ablation_runs import Runs
from one_line import run_program

from spectok.errors import CheckpointError, ConfigError, TrainingError
from spectok.evaluation import compare_results
from spectok.messages import note
from spectok.reading import read_json
from spectok.writing import write_text

RESULTS = Path(__file__).parent / "results" / "ablations"
TRIAL_IMAGES = 200
COLUMNS = {
    "PSNR, dB": "psnr",
    "SSIM": "ssim",
    "MSE": "mse",
    "distinct codes in use": "distinct_usage",
    "distinct perplexity": "distinct_perplexity",
    "parameters": "parameters",
    "bits": "bits_per_image",
    "seconds": "seconds",
}


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure it, and write."""
    arguments = parse(words)
    torch.set_num_threads(1)
    if arguments.list:
        describe_all()
        return
    name, ablation = load_ablation(arguments.name)
    check_known(arguments.only or [], ablation)
    runs, folder = open_runs(name, ablation, arguments)
    seeds = arguments.seeds or ablation.seeds
    command = f"python benchmarks/ablations.py {name}{' --data DIR' if arguments.data else ''}"
    if seeds != ablation.seeds:
        command += f" --seeds {seeds}"
    path = folder / f"{name}.json"
    before = read_report(path)
    report: dict[str, Any] = {}
    failed: list[str] = []
    for seed in range(seeds):
        for variant in arguments.only or ablation.variants:
            try:
                runs.train(variant, seed, runs.rate_of(variant))
            except TrainingError as error:  # the others may still be worth having
                failed.append(f"{variant}, seed {seed}: {error}")
                continue
            report = collect(runs, command, path)
            if lacks_any(report, before):
                aside = path.with_suffix(".earlier.json")
                write_text(aside, json.dumps(before, indent=1) + "\n", CheckpointError)
                note(f"{path} loses numbers whose runs are gone or differ; they are in {aside}")
                before = {}
            write_text(path, json.dumps(report, indent=1) + "\n", CheckpointError)
            psnr = report["variants"][variant]["seeds"][str(seed)]["psnr"]
            print(f"{variant}, seed {seed}: {psnr:.2f} dB", flush=True)
    if report:
        print(*tables(report), path, sep="\n\n")
    if failed:
        raise TrainingError("; ".join(failed))


def open_runs(name: str, ablation: Ablation, arguments: argparse.Namespace) -> tuple[Runs, Path]:
    """Return the runs of a file, or of a trial of it, and the folder of their report."""
    folder, more = Path("runs", "ablations", name), {}
    if arguments.data is not None:
        more["data.path"] = str(Path(arguments.data).absolute())
    if arguments.steps is None:
        return Runs(ablation, folder, more), arguments.results
    folder = folder / f"steps-{arguments.steps}"
    more |= {"train.steps": arguments.steps, "train.warmup_steps": 0}
    few = min(ablation.held_out or TRIAL_IMAGES, TRIAL_IMAGES)
    return Runs(ablation.model_copy(update={"held_out": few}), folder, more), folder


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's words."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name", nargs="?", help="a file of benchmarks/ablations, or a YAML file")
    parser.add_argument("--list", action="store_true", help="show the files that there are")
    parser.add_argument("--seeds", type=int, help="trainings of each variant")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="leave out the other variants")
    parser.add_argument("--data", help="folder with the images, where the recipe needs one")
    parser.add_argument("--steps", type=int, help="a trial: other steps; no result is overwritten")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(words)
    if not arguments.list and arguments.name is None:
        parser.error("give the name of a file, or --list")
    for option in ("seeds", "steps"):
        if (given := getattr(arguments, option)) is not None and given < 1:
            raise ConfigError(f"--{option} {given} must be at least 1")
    return arguments


def describe_all() -> None:
    """Print each file's claims, size and question."""
    for name in list_ablations():
        ablation = read_ablation(name)[1]
        size = f"{len(ablation.variants)} variants, {ablation.seeds} seeds"
        if ablation.rates:
            size += f", {len(ablation.rates)} learning rates"
        print(f"{name} ({', '.join(ablation.claims)}; {size}): {ablation.about.strip()}")


def read_report(path: Path) -> dict[str, Any]:
    """Return an earlier report, or an empty one.

    Raises:
        CheckpointError: If the file is there, and is no report of this program.
    """
    if not path.is_file():
        return {}
    report = read_json(path, CheckpointError)
    try:
        whole = isinstance(report["protocol"]["id"], str)
        rows = report["variants"].values()
        whole &= all("psnr" in seed for row in rows for seed in row["seeds"].values())
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path} is no report of this program; move it away")
    return report


def lacks_any(report: dict[str, Any], before: dict[str, Any]) -> bool:
    """Return whether a report lacks a variant or a seed that the one before it has."""
    rows = report["variants"]
    return any(
        name not in rows or not row["seeds"].keys() <= rows[name]["seeds"].keys()
        for name, row in before.get("variants", {}).items()
    )


def collect(runs: Runs, command: str, path: Path) -> dict[str, Any]:
    """Return the report of all finished runs, and of variants that an earlier report has.

    Raises:
        InputError: If runs were measured by different protocols.
    """
    ablation, found, rows = runs.ablation, {}, {}
    earlier = read_report(path)
    for name, variant in ablation.variants.items():
        row = {"settings": ablation.settings_of(name)}
        row |= variant.model_dump(exclude={"settings"}, exclude_none=True)
        try:
            rate = runs.rate_of(name, train=False)
        except LookupError:
            rate = None
        else:
            for seed in runs.seeds(name):
                if runs.has(name, seed, rate):
                    found[name, seed] = runs.measure(name, seed, rate)
        by_seed = {str(s): of["numbers"] for (v, s), of in found.items() if v == name}
        if by_seed:
            searched = {} if rate is None else {"learning_rate": rate}
            rows[name] = row | searched | {"seeds": by_seed} | summary(list(by_seed.values()))
        elif (kept := earlier.get("variants", {}).get(name)) and is_part(row, kept):
            rows[name] = kept
    protocol = compare_results({f"{name}, seed {seed}": of for (name, seed), of in found.items()})
    if earlier and earlier["protocol"]["id"] != protocol["id"]:
        rows = {name: row for name, row in rows.items() if any(v == name for v, _ in found)}
    recipe = runs.recipe(next(iter(ablation.variants)), 0, None)
    return {
        "command": command,
        "about": ablation.about.strip(),
        "claims": ablation.claims,
        "steps": recipe.train.steps,
        "images_per_step": recipe.train.batch_size * recipe.train.gradient_accumulation,
        "training_images": recipe.data.limit or "all",
        "training_errors_of_rates": {
            family: {rate: error if math.isfinite(error) else None for rate, error in of.items()}
            for family, of in runs.searched.items()
        },
        "protocol": protocol,
        "machine": list(found.values())[-1]["machine"],
        "variants": rows,
    }


def is_part(row: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Return whether an earlier row is of a variant that is still described like this."""
    return all(whole.get(key) == value for key, value in row.items())


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Return the mean of each number over the seeds, and the largest less the least."""
    columns = {key: [result[key] for result in results] for key in results[0]}
    means = {key: statistics.fmean(values) for key, values in columns.items()}
    spreads = {key: max(values) - min(values) for key, values in columns.items()}
    parts = {"mean": means, "spread": spreads}
    return {
        part: {key: float(f"{value:.6g}") for key, value in of.items()}
        for part, of in parts.items()
    }


def tables(report: dict[str, Any]) -> list[str]:
    """Return a report as tables of Markdown: means, with the spread of PSNR over the seeds."""
    rows = report["variants"]
    lines = [
        [name, *(show(row, key) for key in COLUMNS.values()), str(len(row["seeds"]))]
        for name, row in rows.items()
    ]
    found = [markdown(["", *COLUMNS, "seeds"], lines)]
    extra = [key for key in next(iter(rows.values()))["mean"] if is_extra(key)]
    if extra:
        lines = [[key, *(show(row, key) for row in rows.values())] for key in extra]
        found.append(markdown(["", *rows], lines))
    return found


def is_extra(key: str) -> bool:
    """Return whether a number is one that a file's ``measures`` asks for."""
    return key.startswith(("first ", "error, ", "energy, ", "log amplitude, "))


def show(row: dict[str, Any], key: str) -> str:
    """Return a mean as text; a PSNR with its spread."""
    mean = row["mean"].get(key)
    if mean is None:
        return "–"
    if key == "psnr":
        return f"{mean:.2f} ({row['spread'][key]:.2f})"
    return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.4g}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


if __name__ == "__main__":
    run_program(main)
