"""``spectok info`` for priors: what it draws, given what, in which tokens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.by_model import ModelCommand, groups_by_model
from spectok.cli.console import say_next
from spectok.cli.models import AsJson, count_parameters, describe_tokens, show_facts
from spectok.loading import model_folder
from spectok_generation.cli import sampling
from spectok_generation.folders import draws, holds_prior, is_pipeline, prior_folder

if TYPE_CHECKING:
    from spectok_generation.priors import Prior

MOST_NAMES = 10
"""How many classes are named."""


class PriorCommand(ModelCommand):
    """What ``spectok eval FOLDER`` and ``info FOLDER`` mean where the folder holds a prior."""

    def takes(self, word: str) -> bool:
        """Return whether a word is the folder of a prior, of its run, or of a pipeline."""
        word = model_folder(word) if word else ""
        if not os.path.isdir(word):
            return False
        return draws(word) or holds_prior(word)


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the group ``spectok info``."""
    groups_by_model(app)["info"].command("prior", cls=PriorCommand)(info)


def info(
    prior: Annotated[
        str, typer.Argument(help="Trained prior: its folder, that of its run, or of a pipeline.")
    ],
    as_json: AsJson = False,
    trust: sampling.Trust = False,
) -> None:
    """Show what a prior draws, given what, and the tokens it draws them in."""
    folder = prior_folder(prior)

    from spectok_generation.pipeline_folder import load_component
    from spectok_generation.priors import load_prior

    inside = is_pipeline(folder)
    model = (
        load_component(folder, "prior", trust=trust) if inside else load_prior(folder, trust=trust)
    )
    if show_facts(describe(model), as_json):
        return
    draw = ["sample", "--prior", prior]
    if model.text_width:
        draw = ["text-to-image", "PROMPT", "--model", prior]
    say_next(["spectok", *draw, "--out", "samples.png", *["--trust"] * trust])


def describe(prior: Prior) -> dict[str, Any]:
    """Return what ``spectok info`` shows of a prior, as plain JSON types."""
    from spectok_generation.records import describe_record

    record = {key: value for key, value in prior.tokenizer_record.items() if key != "path"}
    names = record.get("class_names") or []
    given = prior.condition_name or "nothing"
    if names:
        shown = [str(name) for name in names[:MOST_NAMES]]
        more = len(names) - len(shown)
        given += f", one of {', '.join(shown)}" + f" and {more} more" * (more > 0)
    elif prior.num_classes:
        given += f", one of {prior.num_classes}"
    return {
        "class": type(prior).__name__,
        "given": given,
        "likelihood": prior.likelihood or "none",
        "tokenizer": describe_record(record),
        "image_shape": record.get("image_shape") or "unknown",
        **describe_tokens(prior.token_spec),
        "parameters": count_parameters(prior),
    }
