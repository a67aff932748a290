"""Measure again all that the cards of the installed trained models claim.

    python benchmarks/verify_all.py --data DIR              # with DIR/cifar10 and so on
    python benchmarks/verify_all.py --data DIR --limit 300  # claims on at most 300 images

Every claim in the card of a trained model that is installed is measured again by its own protocol,
as ``spectok eval --verify`` does. Prints a table; the exit status is 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from one_line import run_program

from spectok import TrainedModel
from spectok.cards import Claim
from spectok.evaluation.verifying import Check, claims_of_folder, reference_data, verify
from spectok.loading import load_trained
from spectok.plugins.registry import list_registered
from spectok_generation import TokenPipeline
from spectok_generation.verifying import verify_likelihood


def main() -> None:
    """Verify all, and print what holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--limit", type=int, help="leave out claims on more images than this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failed, count = 0, 0
    print(f"{'model':28} {'images':>7} {'claims':>7} {'largest difference':>34} {'s':>6}")
    for name, model, claim in claims(arguments.limit):
        begin = time.perf_counter()
        checks = measure(name, model, claim, Path(arguments.data))
        wrong = [check.name for check in checks if not check.passed]
        failed, count = failed + bool(wrong), count + 1
        print(
            f"{name:28} {claim.protocol['num_images']:7,} {len(checks):7} {largest(checks):>34} "
            f"{time.perf_counter() - begin:6.0f} {f'FAIL: {wrong}' if wrong else 'pass'}",
            flush=True,
        )
    print(f"{count - failed} of {count} hold")
    raise SystemExit(1 if failed or not count else 0)


def measure(name: str, model: TrainedModel, claim: Claim, data: Path) -> list[Check]:
    """Measure a claim again, on images in the folder of its data set, or built-in ones."""
    folder = data / claim.data["name"]
    images = reference_data(claim, model.folder, str(folder) if folder.is_dir() else None)
    if model.kind == "tokenizer":
        return verify(claim, load_trained(model.folder), images)
    drawn = TokenPipeline.from_run(name)
    encoder = drawn.text_encoder
    return verify_likelihood(claim, drawn.prior, drawn.tokenizer, images, encoder=encoder)


def claims(limit: int | None) -> Iterator[tuple[str, TrainedModel, Claim]]:
    """Yield every claim of every trained model that is installed."""
    for name, model in list_registered("model").items():
        for claim in claims_of_folder(model.folder).claims:
            if limit is None or claim.protocol["num_images"] <= limit:
                yield name, model, claim


def largest(checks: list[Check]) -> str:
    """Return the largest difference, as a share of what it may be."""
    numbers = [check for check in checks if check.difference is not None and check.tolerance]
    if not numbers:
        return "none may differ"
    worst = max(numbers, key=lambda check: abs(check.difference or 0) / (check.tolerance or 1))
    return f"{worst.name} {worst.difference:+.2g} of ±{worst.tolerance:.2g}"


if __name__ == "__main__":
    run_program(main)
