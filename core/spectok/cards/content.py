"""What stands in a card: header, use, numbers, training and data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from spectok.cards.claims import Claim, describe_images
from spectok.cards.file import (
    BEGIN,
    END,
    join,
    placeholder,
    read_header,
    replace_key,
    replace_numbers,
)
from spectok.errors import one_line
from spectok.recipes.yaml12 import dump_yaml

SECTION, MODEL_INDEX = "spectok", "model-index"
"""Keys of the header: ours, and the hub's for numbers."""
TITLES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "mse": "mean squared error",
    "lpips": "LPIPS",
    "rfid": "rFID",
    "rkid": "rKID",
    "bits_per_image": "bits per image",
    "num_images": "images",
}
NOT_MEASURED = "Not measured yet."


@dataclass(frozen=True)
class Subject:
    """The model that a card is about, and how it was made.

    Args:
        name: What it is called.
        summary: One or two sentences on what it is.
        usage: Python code that uses it.
        tags: Tags for the hub.
        weights: Fingerprint of the model.
        recipe: The resolved recipe, without paths of this machine. None: not known.
        data: The report on the training images, as (heading, text) pairs.
        dataset: Id of the training images on the hub, if they have one.
        data_license: Licence of the training images, if it is known.
        steps: Optimiser steps taken. None: not known.
        seconds: Seconds of training over all resumptions. None: not known.
        machine: See :func:`spectok.machine.describe_machine`. None: not known.
        curve: Name of the picture of the training curve beside the card. None: there is none.
    """

    name: str
    summary: str
    usage: str
    tags: Sequence[str]
    weights: str
    recipe: Mapping[str, Any] | None = None
    data: Sequence[tuple[str, str]] = field(default_factory=tuple)
    dataset: str | None = None
    data_license: str = ""
    steps: int | None = None
    seconds: float | None = None
    machine: Mapping[str, Any] | None = None
    curve: str | None = None


def render(subject: Subject) -> str:
    """Return a whole card without numbers, not sealed yet."""
    from huggingface_hub import ModelCardData

    known = ModelCardData(
        library_name="spectok",
        tags=[*subject.tags],
        datasets=[subject.dataset] if subject.dataset else None,
        model_name=subject.name,
    )
    header = known.to_dict()
    if subject.data_license:
        header["data_license"] = (
            subject.data_license
        )  # `license` is the model's, its owner's to say
    header[SECTION] = {"written": placeholder(), "weights": subject.weights, "measured": []}
    parts = [
        f"\n# {_escape(subject.name)}",
        subject.summary,
        fenced(subject.usage, "python"),
        f"## Numbers\n\n{BEGIN}\n{NOT_MEASURED}\n{END}",
        *_training(subject),
        *_data(subject),
    ]
    return join(header, "\n\n".join(parts) + "\n")


def with_claims(
    card: str,
    claims: Sequence[Claim],
    weights: str,
    name: str,
    earlier: Set[str] = frozenset(),
) -> str:
    """Return a card, not sealed yet, whose header and text hold exactly these claims.

    Results that somebody else added to the hub's list stay there.

    Args:
        card: The card as it was, ours or a person's.
        claims: Of one model, each by another protocol.
        weights: Fingerprint of the model.
        name: Name of the model, for the hub's list of results.
        earlier: Ids of the protocols of claims that the card held before.
    """
    section = {
        "written": placeholder(),
        "weights": weights,
        "measured": [claim.to_dict() for claim in claims],
    }
    own = {claim.protocol_id for claim in claims} | earlier
    others = _results_of_others(read_header(card, name), own)
    listed = [*(model_index(claims, name) if claims else []), *others]
    card = replace_key(card, MODEL_INDEX, listed or None)
    card = replace_key(card, SECTION, section)
    return replace_numbers(card, numbers(claims))


def model_index(claims: Sequence[Claim], name: str) -> list[dict[str, Any]]:
    """Return claims as the hub lists results."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=str(claim.data.get("name", "images")),
            dataset_name=describe_images(claim),
            dataset_split=str(claim.data.get("split", "train")),
            dataset_revision=claim.protocol_id,  # also keeps two protocols on one data set apart
            dataset_args=claim.data,
            metric_type=metric,
            metric_name=TITLES.get(metric, metric.replace("_", " ")),
            metric_value=value,
            metric_args={"protocol": claim.protocol_id},
        )
        for claim in claims
        for task_type, task_name in [_task_of(claim)]
        for metric, value in claim.values.items()
    ]
    return eval_results_to_model_index(name, results)


def _task_of(claim: Claim) -> tuple[str, str]:
    """Return the hub's name of what was measured, and ours."""
    if "likelihood" not in claim.protocol:
        return "image-to-image", "image reconstruction"
    is_of_text = claim.protocol.get("condition") == "text"
    kind = "text-to-image" if is_of_text else "unconditional-image-generation"
    return kind, "likelihood of held-out images' tokens"


def indexed_values(header: Mapping[str, Any]) -> Iterator[tuple[str | None, str, Any]]:
    """Yield the numbers of a header's list of results: protocol id, metric, value.

    The id is None where the list names none.
    """
    for model in _list(header.get(MODEL_INDEX)):
        for result in _list(model.get("results")):
            for metric in _list(result.get("metrics")):
                yield _protocol_of(result, metric), str(metric.get("type")), metric.get("value")


def numbers(claims: Sequence[Claim]) -> str:
    """Return claims as the text of a card shows them."""
    return "\n\n".join(map(_table, claims)) or NOT_MEASURED


def fenced(text: str, language: str) -> str:
    """Return a text as a code block, whatever it contains."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(claim: Claim) -> str:
    shown = {TITLES.get(k, k.replace("_", " ")): v for k, v in claim.values.items()}
    rows = [f"| {name} | {_number(value)} |" for name, value in shown.items()]
    precision = claim.protocol.get("precision")
    return "\n".join(
        [
            f"{_escape(describe_images(claim))}, {_escape(str(precision))}, protocol "
            f"`{_escape(claim.protocol_id)}`:",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "`spectok eval MODEL --verify` measures this again.",
        ]
    )


def _training(subject: Subject) -> list[str]:
    parts = []
    if subject.curve is not None:
        parts.append(f"![Loss against steps]({subject.curve})")
    facts = []
    if subject.steps is not None:
        facts.append(f"{subject.steps:,} steps")
    if subject.seconds is not None:
        facts.append(f"{subject.seconds:,.0f} s")
    if subject.machine is not None:
        versions = subject.machine["versions"]
        facts.append(
            f"{subject.machine['device']}, {subject.machine['processor']}, "
            f"{subject.machine['threads']} thread(s)"
        )
        names = ("python", "spectok", "torch", "diffusers", "accelerate")
        facts.append(", ".join(f"{name} {versions[name]}" for name in names if name in versions))
    parts += ["; ".join(facts) + "."] if facts else []
    if subject.recipe is not None:
        parts.append(f"The recipe:\n\n{fenced(dump_yaml(dict(subject.recipe)), 'yaml')}")
    return ["## Training", *parts] if parts else []


def _data(subject: Subject) -> list[str]:
    if not subject.data:
        return []
    width = max(len(heading) for heading, _ in subject.data)
    lines = "\n".join(f"{heading:{width}}  {one_line(text)}" for heading, text in subject.data)
    parts = ["## Data", fenced(lines, "text")]
    return (
        [*parts, f"Licence of the data: {subject.data_license}."] if subject.data_license else parts
    )


def _results_of_others(header: Mapping[str, Any], own: Set[str]) -> list[dict[str, Any]]:
    """Return a header's list of results without those of some protocols."""
    found = []
    for model in _list(header.get(MODEL_INDEX)):
        rest = [
            result
            for result in _list(model.get("results"))
            if own.isdisjoint(_protocol_of(result, one) for one in _list(result.get("metrics")))
        ]
        found += [{**model, "results": rest}] if rest else []
    return found


def _protocol_of(result: Mapping[str, Any], metric: Mapping[str, Any]) -> str | None:
    """Return the protocol that a number of the hub's list names, itself or for its data set."""
    arguments, dataset = metric.get("args"), result.get("dataset")
    named = arguments.get("protocol") if isinstance(arguments, Mapping) else None
    if named is None and isinstance(dataset, Mapping):
        named = dataset.get("revision")
    return None if named is None else str(named)


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _escape(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", one_line(text))
