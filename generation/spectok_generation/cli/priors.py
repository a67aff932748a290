"""``spectok train prior``, ``spectok extract`` and ``spectok export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.completing import complete_recipe
from spectok.cli.console import say_next
from spectok.cli.train import (
    ResumableCommand,
    ResumeOption,
    check_output,
    check_settings,
    named_recipe,
    resume_of,
)
from spectok.errors import ConfigError
from spectok.messages import say
from spectok.places import home
from spectok_generation.cli.device import process_device
from spectok_generation.cli.sampling import Subfolder, Trust, check_subfolder
from spectok_generation.folders import prior_folder

PRIOR = "gpt"
TOKENIZER_HELP = "Trained tokenizer: its folder or that of its run; or the name of a recipe."
DATA_HELP = (
    "Directory of images, parquet file, tar shards, hub id or name of a data set. "
    "(default: what the tokenizer was trained on)"
)


def add_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add the commands of this module."""
    train.command("prior", cls=ResumableCommand)(train_prior)
    app.command("extract")(extract)
    app.command("export")(export)


def train_prior(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|FILE.yaml] [key=value]...",
            autocompletion=complete_recipe,
            help=f"A recipe ('spectok list recipes'), a file or a prior (default: {PRIOR}), then "
            "settings such as train.steps=2000 prior.size=gpt-nano.",
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP)] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Folder of tokens written by 'spectok extract'.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Condition on captions, read by this CLIP: the folder of a run of 'spectok train "
            "clip', or the name of an open_clip model (with text.pretrained=TAG or FILE)."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the run. (default: runs/PRIOR-TOKENIZER)")
    ] = None,
    resume: ResumeOption = None,
    subfolder: Subfolder = None,
) -> None:
    """Train a prior on the tokens of a trained tokenizer."""
    from spectok.data.choice import check_places, data_override
    from spectok_generation.prior_recipe import PriorRecipe, default_output, load_prior_recipe

    words = words or []
    named = [word for word in words if "=" not in word]
    check_settings(named[1:])
    if len(named) > 1:
        raise ConfigError(f"give one recipe, not {len(named)}: {' '.join(named)}")
    check_output(output, resume_of(resume))
    name = named_recipe(named[0], resume) if named else PRIOR
    given = [("tokenizer", tokenizer), ("tokens", tokens), ("text.encoder", text)]
    given.append(("tokenizer_subfolder", subfolder))
    overrides = [*[pair for pair in given if pair[1]], *[word for word in words if "=" in word]]
    own_data = [data_override(data)] if data else []
    if resume is None:  # a run that goes on has what it needs, or is told by its trainer
        check_places(name, [*own_data, *overrides], PriorRecipe)
    recipe = load_prior_recipe(name, overrides, data)
    folder = Path(home(output or recipe.output or default_output(name, recipe)))

    from spectok_generation.training import train_prior as run

    result = run(recipe, folder, resume=resume_of(resume))
    say(f"trained {result.step:,} steps in {result.seconds:,.0f} s: {folder / 'model'}")
    draw = ["spectok", "sample", "--prior", str(folder)]
    if recipe.text is not None:
        draw = ["spectok", "text-to-image", "PROMPT", "--model", str(folder)]
    say_next([*draw, "--out", "samples.png"])


def extract(
    tokenizer: Annotated[
        str, typer.Argument(help="Trained tokenizer: its folder or that of its run.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the tokens to.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Settings of the data, such as limit=500."),
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    copies: Annotated[
        int, typer.Option(min=1, help="Passes over the data; more than one: augmented images.")
    ] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 64,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the augmentation.")] = 0,
    subfolder: Annotated[str | None, typer.Option(help="Folder inside the tokenizer's.")] = None,
) -> None:
    """Write the tokens of a whole data set to disk, a few bits per index."""
    from spectok.data.choice import check_section
    from spectok.loading import check_trained
    from spectok_generation.prior_recipe import load_data

    check_trained(tokenizer)
    config = load_data(tokenizer, data, overrides or [])
    check_section(config.model_dump())

    from spectok.loading import load_trained
    from spectok_generation.extraction import Extraction
    from spectok_generation.training import extract_data

    how = Extraction(copies, batch_size=batch_size, num_workers=num_workers)
    with process_device() as device:
        model = load_trained(tokenizer, subfolder=subfolder).to(device)
        origin = {"path": tokenizer, "subfolder": subfolder}
        cache = extract_data(model, config, out, how, **origin, seed=seed)
    size = sum(path.stat().st_size for path in out.iterdir())
    say(f"{len(cache):,} images, {cache.token_spec.num_tokens} tokens each, {size:,} bytes: {out}")
    say_next(["spectok", "train", "prior", "--tokens", str(out)])


def export(
    run: Annotated[str, typer.Argument(help="Trained prior: its folder or that of its run.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Its tokenizer (default: the one it was trained with).")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Its text encoder (default: the one it was trained with).")
    ] = None,
    trust: Trust = False,
    subfolder: Subfolder = None,
) -> None:
    """Write prior, tokenizer and text encoder as one folder, a diffusers pipeline."""
    check_subfolder(subfolder, tokenizer)
    prior_folder(run)

    from spectok_generation.pipeline import TokenPipeline

    pipeline = TokenPipeline.from_run(run, tokenizer, text, subfolder=subfolder, trust=trust)
    pipeline.save_pretrained(out)
    parts = [type(part).__name__ for part in pipeline.components.values() if part is not None]
    say(f"{' + '.join(parts)}: {out}")
    draw = ["sample", "--prior", str(out)]
    if pipeline.text_encoder is not None:
        draw = ["text-to-image", "PROMPT", "--model", str(out)]
    say_next(["spectok", *draw, "--out", "samples.png"])
