"""``spectok train clip`` and ``spectok text-to-image``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import say_next
from spectok.errors import ConfigError
from spectok.messages import progress, say
from spectok_generation.cli import process_device


def add_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add the commands of this module."""
    train.command("clip")(train_clip)
    app.command("text-to-image")(text_to_image)


def train_clip(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|FILE.yaml] [key=value]...",
            help="A recipe or a file (default: the one made for the data, or defaults), then "
            "settings such as train.steps=2000 clip.text_layers=2.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Captioned images: directory, parquet, tar shards, hub id or data set."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the run. (default: runs/clip-DATA)")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint.")
    ] = False,
) -> None:
    """Fit a small CLIP on captioned images, whose text half a prior can read."""
    from spectok_generation.text.recipe import default_output, load_clip_recipe

    words = words or []
    named = [word for word in words if "=" not in word]
    if len(named) > 1 or not (named or data):
        raise ConfigError("give one recipe, or captioned images: spectok train clip --data shapes")
    name = named[0] if named else None
    recipe = load_clip_recipe(name, [word for word in words if "=" in word], data)
    folder = Path(output or recipe.output or default_output(name, recipe))

    from spectok_generation.text.clip import train_clip as run

    result = run(recipe, folder, resume=resume)
    say(f"trained {result.step:,} steps in {result.seconds:,.0f} s: {folder / 'model'}")
    say_next(
        ["spectok", "train", "prior", "cat", "--tokenizer", "TOKENIZER", "--text", str(folder)]
    )


def text_to_image(
    prompt: Annotated[str, typer.Argument(help="What the images show, in a few words.")],
    model: Annotated[
        str, typer.Option(help="Trained prior that reads text: its folder, run, or pipeline.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write: a grid of all images.")],
    num_images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 4,
    guidance: Annotated[float, typer.Option(help="Above 1: pulled towards the text.")] = 3.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Image i depends on the prompt, the seed and on i alone.")
    ] = 0,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1: likelier and less varied images (default: 1).")
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
    tokenizer: Annotated[
        str | None, typer.Option(help="Its tokenizer (default: the one it was trained with).")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Its text encoder (default: the one it was trained with).")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="With --text NAME of open_clip: tag or file of its weights."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 64,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Images per row (default: a square grid).")
    ] = None,
) -> None:
    """Draw images of a text."""
    from spectok.cli.models import check_picture
    from spectok.images import enlarge, save_grid
    from spectok_generation.generate import draw_images, load_encoder, load_pair, make_options

    check_picture(out)
    if pretrained is not None and text is None:
        raise ConfigError(f"--pretrained {pretrained} needs the model it is of; give --text NAME")
    wishes = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    wishes |= {"scheduler": scheduler, "num_steps": num_steps, "guidance": guidance}
    with process_device() as device:
        prior, decoder = load_pair(model, tokenizer)
        options = make_options(prior, wishes)
        features = load_encoder(prior, model, text, pretrained).to(device)([prompt])
        prior.to(device)
        with progress("sampling", num_images) as advance:
            images = draw_images(
                prior,
                decoder.to(device),
                num_images,
                features[[0] * num_images],
                seed=seed,
                options=options,
                batch_size=batch_size,
                on_images=advance,
            )
    save_grid(enlarge(images), out, columns)
    say(f"{num_images} images: {out}")
    again = ["--model", model, "--out", str(out), "--seed", str(seed + 1)]
    say_next(["spectok", "text-to-image", prompt, *again])
