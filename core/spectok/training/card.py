"""The card of a run's model: its recipe, its data, its curve, its machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectok.cards import Subject, write_card
from spectok.data.data_config import DataConfig
from spectok.data.report import DataReport
from spectok.machine import describe_machine
from spectok.modeling import model_fingerprint
from spectok.plugins.registry import get_dataset
from spectok.recipes.files import MODEL
from spectok.tokenizer import ImageTokenizer
from spectok.training.log import LOG, read_log


def write_run_card(
    folder: Path,
    recipe: Mapping[str, Any],
    subject: Subject,
    data: DataConfig,
    report: DataReport | None = None,
) -> Path | None:
    """Write the card of a run's model; see :func:`spectok.cards.write_card`.

    Args:
        folder: Folder of the model, inside that of the run, whose log is read.
        recipe: The resolved recipe.
        subject: Name, summary, usage, tags and weights; the rest is filled in here.
        data: The training images.
        report: What is in them.
    """
    records = read_log(folder.parent / LOG)
    last = records[-1] if records else {}
    source = get_dataset(data.name).describe()
    made = {
        "recipe": without_places(dict(recipe)),
        "data": tuple(report.lines()) if report is not None else (),
        "dataset": source.hub_id,
        "data_license": source.license,
        "steps": last.get("step"),
        "seconds": last.get("seconds"),
        "machine": describe_machine(),
    }
    return write_card(folder, Subject(**{**vars(subject), **made}), records)


def describe_tokenizer(
    tokenizer: ImageTokenizer, folder: Path, tags: Sequence[str] = ()
) -> Subject:
    """Return what a card says about a tokenizer besides its training.

    Args:
        tokenizer: The trained tokenizer.
        folder: Folder of the model; it is named after the run that holds it.
        tags: Further tags.
    """
    spec, (channels, height, width) = tokenizer.token_spec, tokenizer.image_shape
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    kind = "grey" if channels == 1 else "colour"
    summary = (
        f"An image tokenizer, {type(tokenizer).__name__}: {width}×{height} {kind} images become "
        f"{spec.num_tokens} integers, {spec.bits_per_image:g} bits. {parameters:,} parameters."
    )
    usage = (
        "from spectok import load_tokenizer\n\n"
        f'tokenizer = load_tokenizer("FOLDER")\n'
        f"tokens = tokenizer.encode(images)  # (B, {channels}, {height}, {width}) in [-1, 1] -> "
        f"int64 (B, {spec.num_tokens})\n"
        "again = tokenizer.decode(tokens)"
    )
    tags = ("image-tokenizer", "vector-quantization", *tags)
    return Subject(name_of_run(folder), summary, usage, tags, model_fingerprint(tokenizer))


def name_of_run(folder: Path) -> str:
    """Return what a model is called: its folder's name, or that of the run around it."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == MODEL else folder.name


def without_places(value: Any) -> Any:
    """Return a recipe with absolute paths cut to their last part; others have no use for them."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return f"…/{Path(value).name}"
    return value
