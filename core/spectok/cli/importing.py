"""``spectok import``: another project's checkpoint becomes a model folder of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import check_file, say_next
from spectok.errors import CheckpointError, ConfigError
from spectok.messages import say
from spectok.plugins import registry


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_model)


def import_model(
    file: Annotated[Path, typer.Argument(help="The checkpoint: .safetensors, .ckpt, .pt.")],
    format: Annotated[
        str, typer.Option("--format", help="Whose checkpoint it is, such as taming or llamagen.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model; new or empty.")],
    image_size: Annotated[
        int, typer.Option(min=1, help="Height and width of the images it was trained on.")
    ] = 256,
) -> None:
    """Turn a checkpoint of another project into a model that can be used and trained further."""
    registry.check_name("checkpoint_format", format)
    check_file(file, CheckpointError, "give the file of a checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} exists and is not an empty folder; choose a new one")

    from spectok.foreign.importing import import_checkpoint

    tokenizer = import_checkpoint(file, format, image_size)
    tokenizer.save_pretrained(out)
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    say(f"{type(tokenizer).__name__} with {count:,} parameters saved in {out}")
    say_next(["spectok", "info", str(out)])
