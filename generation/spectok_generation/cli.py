"""``spectok train prior``, ``spectok extract``, ``spectok sample`` and ``spectok export``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from spectok.cli.console import say_next
from spectok.errors import ConfigError
from spectok.messages import progress, say

PRIOR = "gpt"
TOKENIZER_HELP = "Trained tokenizer: its folder or that of its run; or the name of a recipe."
DATA_HELP = (
    "Directory of images, parquet file, tar shards, hub id or name of a data set. "
    "(default: what the tokenizer was trained on)"
)


def add_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add the commands of this module."""
    train.command("prior")(train_prior)
    app.command("extract")(extract)
    app.command("sample")(sample)
    app.command("export")(export)


def train_prior(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|FILE.yaml] [key=value]...",
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
            "clip', or the name of a model of open_clip (then with text.pretrained=TAG or FILE)."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the run. (default: runs/PRIOR-TOKENIZER)")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint.")
    ] = False,
) -> None:
    """Train a prior on the tokens of a trained tokenizer."""
    from spectok_generation.recipe import default_output, load_prior_recipe

    words = words or []
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise ConfigError(f"give one recipe, not {len(named)}: {' '.join(named)}")
    name = named[0] if named else PRIOR
    given = [("tokenizer", tokenizer), ("tokens", tokens), ("text.encoder", text)]
    overrides = [*[pair for pair in given if pair[1]], *[word for word in words if "=" in word]]
    recipe = load_prior_recipe(name, overrides, data)
    folder = Path(output or recipe.output or default_output(name, recipe))

    from spectok_generation.training import train_prior as run

    result = run(recipe, folder, resume=resume)
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
) -> None:
    """Write the tokens of a whole data set to disk, a few bits per index."""
    from spectok.loading import load_trained
    from spectok_generation.extraction import Extraction
    from spectok_generation.recipe import load_data
    from spectok_generation.training import extract_data

    config = load_data(tokenizer, data, overrides or [])
    how = Extraction(copies, batch_size=batch_size, num_workers=num_workers)
    with process_device() as device:
        model = load_trained(tokenizer).to(device)
        cache = extract_data(model, config, out, how, path=tokenizer, seed=seed)
    size = sum(path.stat().st_size for path in out.iterdir())
    say(f"{len(cache):,} images, {cache.token_spec.num_tokens} tokens each, {size:,} bytes: {out}")
    say_next(["spectok", "train", "prior", "--tokens", str(out)])


def sample(
    prior: Annotated[
        str, typer.Option(help="Trained prior: its folder, that of its run, or of a pipeline.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write: a grid of all images.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Its tokenizer (default: the one it was trained with).")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 16,
    label: Annotated[
        int | None, typer.Option("--class", help="Class to draw (default: all in turn).")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Image i depends on the seed and on i alone.")
    ] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1: likelier and less varied images (default: 1)."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep only the k likeliest codes of each token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest codes up to this probability.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Latent diffusion: ddim, ddpm or flow.")
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option(help="Latent diffusion: denoising steps (default: about 50).")
    ] = None,
    guidance: Annotated[float, typer.Option(help="Above 1: pulled towards the class.")] = 1.0,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Shares of the tokens where guidance begins and ends (default: 0 1)."),
    ] = None,
    complete: Annotated[
        Path | None,
        typer.Option(help="Complete images: tokens that 'spectok encode' wrote, taken in turn."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Which of their tokens stay: how many of the first, or ranges such as 0:8,16:24 "
            "(default: the first half)."
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run steps through torch.compile.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 64,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Images per row (default: a square grid).")
    ] = None,
) -> None:
    """Draw new images from a trained prior."""
    from spectok.cli.models import check_picture
    from spectok.images import enlarge, save_grid
    from spectok_generation.completion import read_known
    from spectok_generation.generate import choose_labels, draw_images, load_pair, make_options

    check_picture(out)
    if keep is not None and complete is None:
        raise ConfigError(f"--keep {keep} needs the tokens it is about; give --complete FILE")
    wishes = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    wishes |= {"scheduler": scheduler, "num_steps": num_steps, "guidance": guidance}
    wishes |= {"guidance_interval": guidance_interval}
    with process_device() as device:
        model, decoder = load_pair(prior, tokenizer)
        options = make_options(model, wishes)
        known = complete and read_known(complete, keep, model.token_spec, num_images)
        if compiled:
            model.compile_step()
        labels = choose_labels(model, num_images, label)
        model.to(device)
        with progress("sampling", num_images) as advance:
            images = draw_images(
                model,
                decoder.to(device),
                num_images,
                labels,
                seed=seed,
                options=options,
                batch_size=batch_size,
                known=known,
                on_images=advance,
            )
    save_grid(enlarge(images), out, columns)
    say(f"{num_images} images: {out}")
    again = ["spectok", "sample", "--prior", prior, "--out", str(out), "--seed", str(seed + 1)]
    say_next(again)


def export(
    run: Annotated[str, typer.Argument(help="Trained prior: its folder or that of its run.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Its tokenizer (default: the one it was trained with).")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Its text encoder (default: the one it was trained with).")
    ] = None,
) -> None:
    """Write prior, tokenizer and text encoder as one folder, a pipeline of diffusers."""
    from spectok_generation.pipeline import TokenPipeline

    pipeline = TokenPipeline.from_run(run, tokenizer, text)
    pipeline.save_pretrained(out)
    parts = [type(part).__name__ for part in pipeline.components.values() if part is not None]
    say(f"{' + '.join(parts)}: {out}")
    draw = ["sample", "--prior", str(out)]
    if pipeline.text_encoder is not None:
        draw = ["text-to-image", "PROMPT", "--model", str(out)]
    say_next(["spectok", *draw, "--out", "samples.png"])


@contextlib.contextmanager
def process_device() -> Iterator[Any]:
    """Give this process its device, and join the group it was launched in."""
    from spectok.training.launch import accelerated
    from spectok.training.train_config import TrainConfig

    with accelerated(TrainConfig.model_validate({}), Path()) as accelerator:
        yield accelerator.device
