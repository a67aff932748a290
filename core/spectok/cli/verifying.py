"""``spectok eval --verify`` and ``--card``: numbers that are measured again, and written down."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from spectok.cli.console import load_on_device, print_table
from spectok.errors import CheckpointError, ConfigError
from spectok.messages import progress, say
from spectok.places import missing

if TYPE_CHECKING:
    from spectok.cards import Claim
    from spectok.evaluation.measuring import Evaluation
    from spectok.evaluation.verifying import Check, Claimed


def verify_claims(
    card: str, data: str | None, overrides: list[str], how: Evaluation, out: Path | None
) -> None:
    """Measure again all that a card or a JSON file claims; see ``spectok eval --verify``.

    Args:
        card: Folder of a model, its card, or a JSON file.
        data: Where the reference images are.
        overrides: Settings of the data, such as ``path=DIR``.
        how: Networks and batch size.
        out: JSON file to write.

    Raises:
        Exit: With status 1, if a claim does not hold.
        SpectokError: If something that it takes is missing.
    """
    from spectok.evaluation.verifying import find_claims, verify

    claimed = find_claims(card)
    tokenizer = load_on_device(os.fspath(claimed.model))

    def measure(claim: Claim, dataset: Any, on_images: Callable[[int], None]) -> list[Check]:
        return verify(claim, tokenizer, dataset, how, on_images)

    tell_verified(card, claimed, data, overrides, measure, out)


def tell_verified(
    card: str,
    claimed: Claimed,
    data: str | None,
    overrides: list[str],
    measure: Callable[[Claim, Any, Callable[[int], None]], list[Check]],
    out: Path | None,
) -> None:
    """Measure each claim of a card again, and print and write what was found.

    Args:
        card: What was given on the command line.
        claimed: What it claims.
        data: See :func:`verify_claims`.
        overrides: See :func:`verify_claims`.
        measure: Measures a claim on its images; called with what counts them.
        out: See :func:`verify_claims`.

    Raises:
        Exit: With status 1, if a claim does not hold.
        SpectokError: If images are missing; as of ``measure``.
    """
    from spectok.cards.claims import describe_images
    from spectok.evaluation.comparison import write_json
    from spectok.evaluation.verifying import contradiction_checks, reference_data
    from spectok.recipes.recipe import apply_overrides, of_data

    settings = apply_overrides({"data": {}}, of_data(overrides))["data"]
    found = []
    for claim in claimed.claims:
        path = None if data == claim.data.get("name") else data
        dataset = reference_data(claim, claimed.model, path, settings)
        with progress("measuring again", len(dataset)) as advance:
            checks = measure(claim, dataset, advance)
        say(f"{describe_images(claim)}, protocol {claim.protocol_id}")
        show_checks(checks)
        found.append({"protocol": claim.protocol_id, "checks": [c.to_dict() for c in checks]})
    failed = [c["name"] for one in found for c in one["checks"] if not c["passed"]]
    failed += [check.name for check in contradiction_checks(claimed)]
    if out is not None:
        result = {"source": card, "passed": not failed, "failed": failed, "claims": found}
        write_json(result, out)
        say(f"everything compared: {out}")
    if failed:
        say(f"fail: {claimed.source} does not hold: {', '.join(failed)}")
        raise typer.Exit(1)
    say(f"pass: all that {claimed.source} claims was measured again")


def show_checks(checks: list[Check]) -> None:
    """Print what was claimed and what was found."""
    columns = ["", "claimed", "measured", "difference", "tolerance", ""]
    print_table(columns, [_row(check) for check in checks])


def check_claims(place: str) -> None:
    """Check that there is something that may claim numbers, before anything is imported to read it.

    Args:
        place: Folder of a model, its card, or a JSON file.

    Raises:
        CheckpointError: If nothing is there.
    """
    from spectok.loading import model_folder

    if not os.path.exists(model_folder(place)):
        raise CheckpointError(
            f"{missing(place)}; it is no folder of a model, no card and no JSON file; give one of "
            f"these"
        )


def local_folder(model: str) -> Path:
    """Return the folder of a model whose card is to be written; in a pipeline, the tokenizer's.

    Raises:
        CheckpointError: If it is not clear which model of a pipeline is meant.
        ConfigError: If it is not on this machine.
    """
    from spectok.foreign.opening import guess_subfolder
    from spectok.loading import model_folder
    from spectok.places import home

    if not os.path.isdir(home(model)):
        raise ConfigError(f"--card writes into the folder of a model, and {model} is none here")
    folder = Path(model_folder(model))
    return folder / guess_subfolder(folder, model)


def _row(check: Check) -> list[str]:
    difference = check.difference
    return [
        check.name,
        _shown(check.claimed),
        _shown(check.found),
        "" if difference is None else f"{difference:+.3g}",
        "" if check.tolerance is None else f"{check.tolerance:.3g}",
        "ok" if check.passed else "DIFFERS",
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
