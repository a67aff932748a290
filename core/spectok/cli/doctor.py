"""``spectok doctor``: what may be wrong with a trained tokenizer, and what to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.evaluate import DataSettings, Limit, check_given, held_out
from spectok.cli.models import AsJson, Model, Subfolder
from spectok.cli.train import Data
from spectok.errors import ConfigError
from spectok.messages import note, progress, say

if TYPE_CHECKING:
    from spectok.evaluation.diagnosis import Diagnosis
    from spectok.tokenizer import ImageTokenizer


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok doctor``."""
    app.command("doctor")(doctor)


def doctor(
    model: Model,
    overrides: DataSettings = None,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data to look at (default: test).")
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
    subfolder: Subfolder = None,
) -> None:
    """Look for what is wrong with a trained tokenizer; exit status 1 if it is damaged."""
    wanted = data is not None or bool(overrides)
    if not wanted and (limit is not None or split is not None):
        raise ConfigError("--limit and --split are of images, and none are looked at; give --data")
    check_given(model, data)

    import torch

    from spectok.evaluation.doctor import examine
    from spectok.evaluation.resizing import dataset_for

    def images(tokenizer: ImageTokenizer) -> Any:
        shape = {"channels": tokenizer.image_shape[0], "image_size": tokenizer.image_shape[1]}
        settings = shape | {"split": split or "test", "limit": limit}
        return dataset_for(tokenizer, held_out(model, data, settings, overrides or []))[0]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with progress("looking at images", limit or 0) as advance:
        found = examine(
            model,
            images if wanted else None,
            subfolder=subfolder,
            device=device,
            on_images=advance,
        )
    if as_json:
        say(json.dumps({"model": model} | found.to_dict(), indent=2, ensure_ascii=False))
    else:
        show(found)
    if found.is_damaged:
        raise typer.Exit(1)


def show(found: Diagnosis) -> None:
    """Print a diagnosis."""
    for finding in found.sorted():
        say(f"{finding.severity}: {finding.check}, {finding.place}: {finding.message}")
        say(f"  remedy: {finding.remedy}")
    if not found.findings:
        say(f"nothing found; looked for: {', '.join(found.checked)}")
    for check, why in found.not_checked.items():
        note(f"{check} not checked: {why}")
