"""What the card of a prior says about it besides its training."""

from __future__ import annotations

from pathlib import Path

from spectok.cards import Subject
from spectok.training.card import name_of_run
from spectok_generation.priors import Prior
from spectok_generation.records import describe_record, prior_fingerprint


def describe_prior(prior: Prior, folder: Path) -> Subject:
    """Return what a card says about a prior besides its training.

    Args:
        prior: The trained prior.
        folder: Folder of the model; it is named after the run that holds it.
    """
    spec, kind = prior.token_spec, type(prior).__name__
    parameters = sum(parameter.numel() for parameter in prior.parameters())
    record = {key: value for key, value in prior.tokenizer_record.items() if key != "path"}
    tokenizer = describe_record(record)  # its path is a place on this machine
    condition = f", given a {prior.condition_name}" if prior.condition_name else ""
    summary = (
        f"A generative model of images, {kind}{condition}, on the {spec.num_tokens} tokens of "
        f"{tokenizer}. {parameters:,} parameters."
    )
    if prior.condition_name == "text":
        draw = 'spectok text-to-image "PROMPT" --model FOLDER --out images.png'
    else:
        draw = "spectok sample --prior FOLDER --out images.png"
    usage = (
        "# from a shell, with the folder of its tokenizer beside it or as --tokenizer:\n"
        f"# {draw}\n"
        "from spectok_generation import TokenPipeline\n\n"
        'pipeline = TokenPipeline.from_run("FOLDER")'
    )
    tags = ("image-generation", "prior", kind.lower())
    return Subject(name_of_run(folder), summary, usage, tags, prior_fingerprint(prior))
