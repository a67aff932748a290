"""``spectok compress`` and ``spectok decompress``: images to a small file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spectok.cli.console import (
    batches,
    find_images,
    load_on_device,
    note_resizing,
    originals,
    say_next,
)
from spectok.cli.models import Images, Model, Overlap, Tile, check_sizing
from spectok.cli.tokens import new_files
from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.messages import count_images, progress, say
from spectok_generation.cli.sampling import Trust

SUFFIX = ".stk"

PriorOption = Annotated[
    str | None,
    typer.Option(help="A prior on the tokenizer's tokens, which codes them in fewer bits."),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("compress")(compress)
    app.command("decompress")(decompress)


def compress(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help=f"File to write: {SUFFIX}.")],
    prior: PriorOption = None,
    label: Annotated[
        int | None, typer.Option("--class", help="Class of all images, for a prior with classes.")
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Bring the images to the tokenizer's size first.")
    ] = False,
    tile: Tile = None,
    overlap: Overlap = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="With a prior: code each tile in a stream of its own.")
    ] = False,
    names: Annotated[bool, typer.Option(help="Keep the names of the files, or leave them out.")] = (
        True
    ),
    trust: Trust = False,
) -> None:
    """Compress images into a file, with a tokenizer and, if given, a prior."""
    if out.suffix != SUFFIX:
        raise ConfigError(f"--out {out} does not end in {SUFFIX}")
    if resize and (tile is not None or overlap is not None):
        raise ConfigError(
            "--resize brings images to one size, and --tile and --overlap cut them; give one"
        )
    if prior is None:  # one has tiles of its own size
        check_sizing(None, False, tile, overlap)
    if prior is None and (label is not None or apart):
        raise ConfigError("--class and --apart are for coding with a prior; give --prior too")
    files = find_images(images)
    codec = load_codec(model, prior, trust)

    from spectok.writing import whole_file

    tokenizer = codec.tokenizer
    if resize:
        note_resizing(files, tokenizer.image_shape)
    load = batches if resize else originals
    loaded = [image.cpu() for batch in load(files, tokenizer, "reading") for image in batch]
    data = codec.compress(
        loaded,
        labels=None if label is None else [label] * len(loaded),
        names=[file.name for file in files] if names else None,
        tile=tile,
        overlap=overlap,
        together=not apart,
    )
    with whole_file(out, DataError) as unfinished:
        unfinished.write_bytes(data)
    pixels = sum(image[0].numel() for image in loaded)
    each = f"{len(data):,} bytes, {8 * len(data) / pixels:.4g} bits per pixel"
    say(f"{count_images(len(files))}, {each}: {out}")
    say_next(["spectok", "decompress", model, str(out), "--out", "decompressed", *_with(prior)])


def decompress(
    model: Model,
    file: Annotated[Path, typer.Argument(help="File that 'spectok compress' wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the images.")],
    prior: PriorOption = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels that all images may have together (default: 2^26)."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Decompress a file into images."""
    from spectok.reading import check_regular

    check_regular(file, DataError)
    codec = load_codec(model, prior, trust)

    from spectok.codec.codec import MAX_PIXELS
    from spectok.codec.container import LONGEST_FILE
    from spectok.images import save_picture, to_pil

    check_regular(file, DataError, LONGEST_FILE)
    try:
        stored = codec.read(file.read_bytes(), max_pixels=max_pixels or MAX_PIXELS)
    except (DataError, CheckpointError) as error:
        raise type(error)(f"{file}: {error}") from error
    names = stored.names or [f"{i:06}" for i in range(len(stored.tilings))]
    targets = new_files(out, names)
    with progress("decoding", len(targets)) as advance:
        for image, target in zip(codec.decode(stored), targets):
            save_picture(to_pil(image), target)
            advance(1)
    say(f"{count_images(len(targets))}: {out}")
    again = ["--out", "again.stk", *_with(prior)]
    say_next(["spectok", "compress", model, str(out), *again])


def load_codec(model: str, prior: str | None, trust: bool) -> Any:
    """Load a tokenizer, and a prior if one is named, as a codec.

    Raises:
        CheckpointError: If the two do not belong together.
    """
    if prior is None:
        tokenizer, coder = load_on_device(model), None
    else:
        from spectok_generation.coding import PriorCoder
        from spectok_generation.pairs import load_pair

        on_device, tokenizer = load_pair(prior, model, trust=trust)

        import torch

        device: Any = "cuda" if torch.cuda.is_available() else "cpu"
        coder, tokenizer = PriorCoder(on_device.to(device)), tokenizer.to(device)

    from spectok.codec import Codec

    return Codec(tokenizer, coder)


def _with(prior: str | None) -> list[str]:
    return [] if prior is None else ["--prior", prior]
