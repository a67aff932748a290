"""``spectok sample`` and ``spectok text-to-image``: a trained prior to a picture, or to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spectok.cli.completing import complete_path
from spectok.cli.console import say_next
from spectok.errors import ConfigError
from spectok_generation.cli.device import process_device
from spectok_generation.cli.output import choose_output
from spectok_generation.folders import prior_folder

Out = Annotated[
    str,  # a path would lose the slash that makes a folder of "x.y/"
    typer.Option(
        metavar="PATH",
        autocompletion=complete_path,
        help="Picture to write, a grid of all images; or folder, with a PNG file for each image.",
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Its tokenizer (default: the one it was trained with).")
]
Subfolder = Annotated[
    str | None,
    typer.Option(help="Folder inside --tokenizer (default: the one its model_index.json says)."),
]
NumImages = Annotated[int, typer.Option(min=1, help="Number of images.")]
Seed = Annotated[
    int, typer.Option(min=0, help="Image i depends only on its class or text, the seed and i.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images drawn at once.")]
Columns = Annotated[
    int | None, typer.Option(min=1, help="Images per row (default: a square grid).")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Load a pipeline that brings code of its own, or claims unusual sizes."
    ),
]
Compiled = Annotated[bool, typer.Option("--compile", help="Run steps through torch.compile.")]

# The sampling options, which make_options takes.
Temperature = Annotated[
    float | None, typer.Option(help="Below 1: likelier and less varied images (default: 1).")
]
TopK = Annotated[int | None, typer.Option(help="Keep only the k likeliest codes of each token.")]
TopP = Annotated[
    float | None, typer.Option(help="Keep the likeliest codes up to this probability.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Latent diffusion: ddim, ddpm or flow (default: the prior's own)."),
]
NumSteps = Annotated[
    int | None,
    typer.Option(
        help="Latent diffusion, maskgit: steps of drawing (default: the prior's own, or about 50)."
    ),
]
ChoiceTemperature = Annotated[
    float | None,
    typer.Option(
        help="maskgit: 0 settles the likeliest tokens first, more a random order (default: the "
        "prior's own)."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Above 1: pull towards the class or the text (default: 1, or 3 for a text)."),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        help="Fractions of the sequence, or of maskgit's steps, where guidance begins and ends "
        "(default: 0 1)."
    ),
]


DRAWING = (
    "temperature",
    "top_k",
    "top_p",
    "scheduler",
    "num_steps",
    "choice_temperature",
    "guidance",
    "guidance_interval",
)
"""Names of the parameters above that every command which draws has."""


def drawing_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a command's arguments that say how images are drawn; None: not given."""
    return {name: given[name] for name in DRAWING}


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("sample")(sample)
    app.command("text-to-image")(text_to_image)


def check_subfolder(subfolder: str | None, tokenizer: str | None) -> None:
    """Refuse a folder inside a tokenizer that is not given.

    Raises:
        ConfigError: If so.
    """
    if subfolder is not None and tokenizer is None:
        raise ConfigError(f"--subfolder {subfolder} is inside a tokenizer; give --tokenizer too")


def sample(
    prior: Annotated[
        str, typer.Option(help="Trained prior: its folder, that of its run, or of a pipeline.")
    ],
    out: Out,
    tokenizer: Tokenizer = None,
    num_images: NumImages = 16,
    label: Annotated[
        int | None, typer.Option("--class", help="Class to draw (default: all in turn).")
    ] = None,
    seed: Seed = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    scheduler: Scheduler = None,
    num_steps: NumSteps = None,
    choice_temperature: ChoiceTemperature = None,
    guidance: Guidance = None,
    guidance_interval: GuidanceInterval = None,
    complete: Annotated[
        Path | None,
        typer.Option(
            help="Tokens of images to complete, as 'spectok encode' wrote them; taken in turn."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Which of their tokens to keep: a number of leading ones, or ranges such as "
            "0:8,16:24 (default: the first half)."
        ),
    ] = None,
    compiled: Compiled = False,
    batch_size: BatchSize = 64,
    columns: Columns = None,
    trust: Trust = False,
    subfolder: Subfolder = None,
) -> None:
    """Draw new images from a trained prior."""
    given = locals()
    output = choose_output(out, batch_size, columns, compiled)
    if keep is not None and complete is None:
        raise ConfigError(f"--keep {keep} needs the tokens it is about; give --complete FILE")
    check_subfolder(subfolder, tokenizer)
    prior_folder(prior)

    from spectok.modeling import model_fingerprint
    from spectok_generation.cli.completion import read_known
    from spectok_generation.drawing import choose_labels, make_options
    from spectok_generation.pairs import load_pair
    from spectok_generation.sample_folder import Wanted

    values = drawing_options(given)
    with process_device() as device:
        model, decoder = load_pair(prior, tokenizer, subfolder=subfolder, trust=trust)
        options = make_options(model, values)
        weights = model_fingerprint(decoder) if complete else None
        known = complete and read_known(complete, keep, model.token_spec, num_images, weights)
        labels = choose_labels(model, num_images, label)
        wanted = Wanted(num_images, labels, seed=seed, options=options, known=known or None)
        output.draw(model.to(device), decoder.to(device), wanted)
    say_next(output.next_command(prior, wanted, trust))


def text_to_image(
    prompt: Annotated[str, typer.Argument(help="What the images show, in a few words.")],
    model: Annotated[
        str, typer.Option(help="Trained prior that reads text: its folder, run, or pipeline.")
    ],
    out: Out,
    tokenizer: Tokenizer = None,
    text: Annotated[
        str | None, typer.Option(help="Its text encoder (default: the one it was trained with).")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="With --text NAME of open_clip: tag or file of its weights."),
    ] = None,
    num_images: NumImages = 4,
    seed: Seed = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    scheduler: Scheduler = None,
    num_steps: NumSteps = None,
    choice_temperature: ChoiceTemperature = None,
    guidance: Guidance = None,
    guidance_interval: GuidanceInterval = None,
    compiled: Compiled = False,
    batch_size: BatchSize = 64,
    columns: Columns = None,
    trust: Trust = False,
    subfolder: Subfolder = None,
) -> None:
    """Draw images of a text."""
    given = locals()
    output = choose_output(out, batch_size, columns, compiled)
    if pretrained is not None and text is None:
        raise ConfigError(f"--pretrained {pretrained} needs the model it is of; give --text NAME")
    check_subfolder(subfolder, tokenizer)
    prior_folder(model)

    from spectok_generation.drawing import make_options
    from spectok_generation.guidance import TEXT_GUIDANCE
    from spectok_generation.pairs import load_encoder, load_pair
    from spectok_generation.sample_folder import Wanted

    values = drawing_options(given)
    values["guidance"] = TEXT_GUIDANCE if guidance is None else guidance
    with process_device() as device:
        prior, decoder = load_pair(model, tokenizer, subfolder=subfolder, trust=trust)
        options = make_options(prior, values)
        encoder = load_encoder(prior, model, text, pretrained, trust=trust)
        wanted = Wanted(num_images, prompts=[prompt], seed=seed, options=options)
        output.draw(prior.to(device), decoder.to(device), wanted, encoder.to(device))
    say_next(output.next_command(model, wanted, trust))
