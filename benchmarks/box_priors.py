"""Put priors and pipelines into the package of trained models; see ``box.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from box_files import MEASURED, give_license, halve, halve_file, log_of, recipe_section, shrink

from spectok import ImageTokenizer, TrainedModel, load_tokenizer
from spectok.cards import CARD, write_card
from spectok.cards.folder import CURVE
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError
from spectok.evaluation.numbers import record_result
from spectok.machine import describe_machine
from spectok.modeling import read_config
from spectok.plugins.registry import get_dataset
from spectok.recipes.files import RUN_RECIPE
from spectok.recipes.yaml12 import dump_yaml
from spectok.saving import give_usual_permissions
from spectok.training.card import without_places
from spectok_generation import Prior, TokenPipeline, load_prior, measure_likelihood
from spectok_generation.card import describe_prior
from spectok_generation.prior_recipe import held_out
from spectok_generation.records import tokenizer_record
from spectok_generation.text.encoder import CONFIG, TEXT_WEIGHTS


def store_prior(arguments: argparse.Namespace, model: Path, made: Path) -> None:
    """Write a prior as float16 whose tokenizer is in the box too, and its card.

    Raises:
        CheckpointError: If its tokenizer is not.
    """
    recorded = (read_config(model).get("tokenizer") or {}).get("path")
    if recorded not in TrainedModel.below(arguments.box):
        raise CheckpointError(
            f"the tokenizer of this prior is {recorded}, no trained model that is installed; put "
            f"that one into the box first, and train the prior on it by its name"
        )
    prior = load_prior(model)
    prior.save_pretrained(made)
    halve(made)
    stored = load_prior(made)
    tokenizer = load_tokenizer(stored.tokenizer_record["path"])
    told = "Its weights are stored as float16."
    write_prior_card(arguments, model, made, (prior, stored), (tokenizer,) * 2, told)


def store_pipeline(arguments: argparse.Namespace, model: Path, made: Path) -> None:
    """Write a prior that reads text with all that it needs, as float16, and a card."""
    whole, small = TokenPipeline.from_run(model), TokenPipeline.from_run(model)
    config = held_out(str(model), None, {"split": "train"}, paths(arguments))
    train = build_dataset(config, train=False)
    captions = {text for i in range(len(train)) for text in train.captions_of(i)}
    for part in small.components.values():
        for tensor in part.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    encoder = small.text_encoder.restricted_to(sorted(captions))
    records = {"tokenizer": tokenizer_record(small.tokenizer), "text": encoder.record}
    records["tokenizer"]["class_names"] = small.prior.tokenizer_record.get("class_names")
    small.prior.register_to_config(**records)
    TokenPipeline(small.tokenizer, small.prior, encoder).save_pretrained(made)
    halve(made / "tokenizer")
    halve(made / "prior")
    halve_file(made / "text_encoder" / TEXT_WEIGHTS)
    give_usual_permissions(made / "text_encoder", CONFIG)
    stored = TokenPipeline.from_pretrained(made)
    told = (
        "Prior, tokenizer and text encoder are stored as float16, the encoder with the words of "
        "the captions alone; it refuses others."
    )
    pipelines = (whole, stored)
    write_prior_card(
        arguments,
        model,
        made,
        tuple(one.prior for one in pipelines),
        tuple(one.tokenizer for one in pipelines),
        told,
        tuple(one.text_encoder for one in pipelines),
    )


def paths(arguments: argparse.Namespace) -> list[str]:
    """Return where the images are, as settings of the data; nothing for built-in ones."""
    return [f"path={arguments.data}"] if arguments.data else []


def held_out_data(
    arguments: argparse.Namespace, model: Path, tokenizer: ImageTokenizer, limit: int | None
) -> DataConfig:
    """Return the test images of the data that a prior was trained on, or the first of them."""
    channels, size = tokenizer.image_shape[:2]
    settings = {"split": "test", "limit": limit, "image_size": size, "channels": channels}
    return held_out(str(model), None, settings, paths(arguments))


def write_prior_card(
    arguments: argparse.Namespace,
    model: Path,
    made: Path,
    priors: tuple[Prior, Prior],
    tokenizers: tuple[ImageTokenizer, ImageTokenizer],
    told: str,
    encoders: Sequence[Any] = (None, None),
) -> None:
    """Write the recipe and the card of a prior or a pipeline, with the bits of test images.

    Args:
        arguments: The command line.
        model: The prior as it was trained.
        made: Where it is stored.
        priors: As it was trained, and as it is stored, as for the others.
        tokenizers: Their tokenizers.
        told: How it is stored.
        encoders: Their text encoders.
    """
    stored, tokenizer = priors[1], tokenizers[1]
    recipe = without_places(recipe_section(model))
    (made / RUN_RECIPE).write_text(dump_yaml(recipe), encoding="utf-8")
    measured = []
    if stored.likelihood is not None:
        for limit in MEASURED:
            data = held_out_data(arguments, model, tokenizer, limit)
            found = measure_likelihood(
                stored, tokenizer, build_dataset(data, train=False), encoder=encoders[1]
            )
            measured.append((data, found))
        whole = build_dataset(held_out_data(arguments, model, tokenizer, None), train=False)
        before = measure_likelihood(priors[0], tokenizers[0], whole, encoder=encoders[0])
        told = f"{told} {tell_bits(before, measured[-1][1])}"
    subject = describe_prior(stored, made)
    source = get_dataset(recipe["data"]["name"]).describe()
    last = (log_of(model) or [{}])[-1]
    subject = replace(
        subject,
        name=arguments.name,
        summary=f"{subject.summary} {told}",
        usage=subject.usage.replace("FOLDER", arguments.name).replace(
            ", with the folder of its tokenizer beside it or as --tokenizer", ""
        ),
        recipe=recipe,
        dataset=source.hub_id,
        data_license=arguments.data_license or source.license or "not stated",
        steps=last.get("step"),
        seconds=last.get("seconds"),
        machine=describe_machine(),
    )
    write_card(made, subject, log_of(model))
    shrink(made / CURVE)
    for data, found in measured:
        record_result(subject, made, found, data)
    give_license(made / CARD, arguments.license)


def tell_bits(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Tell the likelihood of test images before and after storing."""
    was, now = (found["metrics"]["bits_per_image"] for found in (before, after))
    print(f"{now:.2f} bits per image, {was:.2f} before", flush=True)
    kind = "at most " if after["likelihood"] == "bound" else ""
    return (
        f"The tokens of a test image take {kind}{now:.1f} bits ({was:.1f} as it was trained), of "
        f"{after['uncoded']['bits_per_image']:g} if all codes were equally likely."
    )
