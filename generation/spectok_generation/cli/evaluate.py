"""``spectok eval`` for priors: how close what they draw is to real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from spectok.cli.by_model import groups_by_model
from spectok.cli.console import print_facts, say_next, this_command
from spectok.cli.evaluate import (
    ClassifierFolder,
    DataSettings,
    InceptionWeights,
    Limit,
)
from spectok.cli.train import Data
from spectok.cli.verifying import tell_verified
from spectok.errors import ConfigError
from spectok.messages import count_images, note, progress, say
from spectok_generation.cli import sampling
from spectok_generation.cli.device import process_device
from spectok_generation.cli.info import PriorCommand
from spectok_generation.folders import prior_folder


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the group ``spectok eval``."""
    groups_by_model(app)["eval"].command("prior", cls=PriorCommand)(evaluate)


def evaluate(
    prior: Annotated[
        str, typer.Argument(help="Trained prior: its folder, that of its run, or of a pipeline.")
    ],
    num_images: Annotated[int | None, typer.Option(help="Images to draw.")] = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood", help="Measure the bits of held-out images' tokens, and draw none."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Measure again what the card claims; exit status 1 if it is not so."
        ),
    ] = False,
    card: Annotated[
        bool,
        typer.Option("--card", help="With --likelihood: write the numbers into the card."),
    ] = False,
    overrides: DataSettings = None,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data to compare with (default: test).")
    ] = None,
    limit: Limit = None,
    tokenizer: sampling.Tokenizer = None,
    text: Annotated[
        str | None, typer.Option(help="Its text encoder (default: the one it was trained with).")
    ] = None,
    seed: sampling.Seed = 0,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    scheduler: sampling.Scheduler = None,
    num_steps: sampling.NumSteps = None,
    choice_temperature: sampling.ChoiceTemperature = None,
    guidance: sampling.Guidance = None,
    guidance_interval: sampling.GuidanceInterval = None,
    compiled: sampling.Compiled = False,
    batch_size: sampling.BatchSize = 64,
    classifier: ClassifierFolder = None,
    inception_weights: InceptionWeights = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the drawn images in; what is there is not drawn again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    trust: sampling.Trust = False,
    subfolder: sampling.Subfolder = None,
) -> None:
    """Measure how close images that a trained prior draws are to held-out ones."""
    given = locals()
    if (num_images is not None) + likelihood + verify != 1:
        raise ConfigError(
            "give --num-images, to measure images that are drawn, --likelihood, for the bits of "
            "held-out images, or --verify, for what the card claims"
        )
    if card and not likelihood:
        raise ConfigError("--card writes the bits of --likelihood; give both, or leave it out")
    if verify and (split is not None or limit is not None):
        raise ConfigError(
            "--verify measures what is claimed, on the images that were claimed; leave out "
            "--split and --limit"
        )
    values = sampling.drawing_options(given)
    drawing = values | {
        "compile": compiled or None,
        "classifier": classifier,
        "inception_weights": inception_weights,
        "images": images,
    }
    without = "--likelihood" if likelihood else "--verify"
    if num_images is None and (given := [k for k, value in drawing.items() if value is not None]):
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} is about images that are drawn; {without} draws none")
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out {out} does not end in .json; give a name such as result.json")
    sampling.check_subfolder(subfolder, tokenizer)
    folder = prior_folder(prior)

    from spectok.data.choice import check_choice

    check_choice(data)

    from spectok.data import build_dataset
    from spectok.evaluation import Networks
    from spectok.evaluation.numbers import record_result
    from spectok.evaluation.verifying import claims_of_folder
    from spectok.processes import on_main
    from spectok_generation.card import describe_prior
    from spectok_generation.drawing import make_options
    from spectok_generation.evaluation import choose_wanted, evaluate_prior
    from spectok_generation.guidance import TEXT_GUIDANCE
    from spectok_generation.likelihood import measure_likelihood
    from spectok_generation.pairs import load_encoder, load_pair
    from spectok_generation.prior_recipe import held_out
    from spectok_generation.sample_folder import check_is_ours
    from spectok_generation.verifying import verify_likelihood

    if images is not None:
        check_is_ours(images)
    with process_device() as device:
        model, decoder = load_pair(prior, tokenizer, subfolder=subfolder, trust=trust)
        encoder = load_encoder(model, prior, text, trust=trust) if model.text_width else None
        if guidance is None and encoder is not None:
            values["guidance"] = TEXT_GUIDANCE
        channels, size = decoder.image_shape[:2]
        on_device = None if encoder is None else encoder.to(device)
        parts = model.to(device), decoder.to(device)
        how: dict[str, Any] = {"encoder": on_device, "batch_size": batch_size}
        if verify:
            tell_verified(
                prior,
                claims_of_folder(folder),
                data,
                overrides or [],
                lambda claim, images, advance: verify_likelihood(
                    claim, *parts, images, **how, on_images=advance
                ),
                out,
            )
            return
        size_of = {"channels": channels, "image_size": size}
        settings = {**size_of, "split": split or "test", "limit": limit}
        config = held_out(prior, data, settings, overrides or [])
        dataset = build_dataset(config, train=False)
        pair = *parts, dataset
        if num_images is None:
            with progress("measuring", len(dataset)) as advance:
                result = measure_likelihood(*pair, **how, on_images=advance)
            finish(prior, result, out, show_likelihood)
            if card:
                subject = describe_prior(model, folder)
                written = on_main(lambda: record_result(subject, folder, result, config))
                say(f"written into the card: {written}")
            say_next(["spectok", "eval", prior, "--num-images", "1000"])
            return
        options = make_options(model, values)
        wanted = choose_wanted(model, dataset, num_images, seed=seed, options=options)
        if compiled:
            model.compile_step()
        networks = Networks(inception=inception_weights, classifier=classifier)
        with (
            progress("drawing", num_images) as drawn,
            progress("comparing", num_images + len(dataset)) as compared,
        ):
            result = evaluate_prior(
                *pair,
                wanted,
                networks,
                encoder=on_device,
                folder=images,
                batch_size=batch_size,
                on_draw=drawn,
                on_compare=compared,
            )
        finish(prior, result, out, show)
    again = ["sample", "--prior", prior]
    if encoder is not None:
        again = ["text-to-image", "PROMPT", "--model", prior]
    say_next(["spectok", *again, "--out", "samples.png", *["--trust"] * trust])


def finish(
    prior: str, result: dict[str, Any], out: Path | None, show: Callable[[dict[str, Any]], None]
) -> None:
    """Write what was measured to a file, if one was asked for, and print it."""
    from spectok.evaluation.comparison import write_json
    from spectok.processes import on_main

    if out is not None:
        facts = {"command": this_command(), "model": prior}
        on_main(lambda: write_json({**facts, **result}, out))
    show(result)
    if out is not None:
        say(f"everything measured: {out}")


def show_likelihood(result: dict[str, Any]) -> None:
    """Print the bits of held-out images' tokens."""
    print_facts({name: f"{value:,.5g}" for name, value in result["metrics"].items()})
    given = f"given the {result['condition']}" if result["condition"] else "without a condition"
    kind = "exact likelihood" if result["likelihood"] == "exact" else "bound on the likelihood"
    say(
        f"{kind} of the tokens, {given}; "
        f"{result['uncoded']['bits_per_image']:,.5g} bits per image if all codes were equal"
    )
    say(f"{count_images(result['num_images'])}, protocol {result['protocol']['id']}")


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    from spectok.evaluation.report import format_metric

    print_facts({name: format_metric(name, value) for name, value in result["metrics"].items()})
    reference = count_images(result["protocol"]["num_images"])
    say(
        f"{count_images(result['num_images'])} drawn, compared with {reference}, protocol "
        f"{result['protocol']['id']}"
    )
    for name, why in result["not_measured"].items():
        note(f"{name} not measured: {why}")
