"""``spectok encode`` and ``spectok decode``: images to a file of integers, and back."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.console import (
    BATCH_SIZE,
    batches,
    check_file,
    find_images,
    load_on_device,
    naming,
    naming_image,
    note_resizing,
    originals,
    parse_size,
    say_next,
)
from spectok.cli.models import (
    Images,
    ImageSizeOption,
    Model,
    NumTokens,
    Overlap,
    Subfolder,
    Tile,
    check_sizing,
)
from spectok.errors import ConfigError, DataError
from spectok.loading import check_trained
from spectok.messages import count_images, progress, say

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = (".npz", ".json")


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok encode`` and ``spectok decode``."""
    app.command("encode")(encode)
    app.command("decode")(decode)


def encode(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help="File of tokens to write: .npz or .json.")],
    image_size: ImageSizeOption = None,
    tile: Tile = None,
    overlap: Overlap = None,
    subfolder: Subfolder = None,
) -> None:
    """Turn images into tokens."""
    check_sizing(image_size, False, tile, overlap)
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out} does not end in .npz or .json")
    files = find_images(images)
    tokenizer = load_on_device(model, subfolder)

    import torch

    from spectok.modeling import model_fingerprint
    from spectok.sizes import size_of
    from spectok.tiling import Tiling, encode_tiles, plan_tiles
    from spectok.token_files import write_tokens

    names, tilings = [str(file) for file in files], None
    weights = model_fingerprint(tokenizer)
    parts: list[Tensor] = []
    if tile is not None:
        tilings = []
        for file, image in zip(files, originals(files, tokenizer, "encoding")):
            with naming_image(file):
                tilings.append(plan_tiles(tokenizer, size_of(image), tile=tile, overlap=overlap))
            parts.append(encode_tiles(tokenizer, image, tilings[-1])[0].cpu())
        tokenizer = tokenizer.at_size(tile)
    else:
        if image_size is not None:
            tokenizer = tokenizer.at_size(parse_size(image_size))
            size: Any = tuple(tokenizer.image_shape[1:])
            tilings = [Tiling(size, size)] * len(files)
        note_resizing(files, tokenizer.image_shape)
        parts = [tokenizer.encode(batch).cpu() for batch in batches(files, tokenizer, "encoding")]
    spec, indices = tokenizer.token_spec, torch.cat(parts).numpy()
    write_tokens(out, indices, names, spec, tilings, weights)
    share = len(indices) / len(files)
    each = f"{spec.num_tokens * share:,.0f} tokens and {spec.bits_per_image * share:,.0f} bits each"
    say(f"{count_images(len(files))}, {each}: {out}")
    say_next(["spectok", "decode", *naming(model, subfolder), str(out), "--out", "decoded"])


def decode(
    model: Model,
    tokens: Annotated[Path, typer.Argument(help="File of tokens that 'spectok encode' wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the images.")],
    num_tokens: NumTokens = None,
    subfolder: Subfolder = None,
) -> None:
    """Turn tokens into images."""
    check_trained(model)
    check_file(tokens, DataError, "'spectok encode' writes such a file")
    tokenizer = load_on_device(model, subfolder)

    import torch

    from spectok.images import save_picture, to_pil
    from spectok.modeling import model_fingerprint
    from spectok.tiling import decode_tiles
    from spectok.token_files import read_images

    stored = read_images(tokens, tokenizer, model_fingerprint(tokenizer))
    files = new_files(out, [image.name for image in stored])
    alike = itertools.groupby(zip(stored, files), key=lambda pair: pair[0].tiling)
    with progress("decoding", len(files)) as advance:
        for tiling, group in alike:
            run = list(group)
            for batch in (run[i : i + BATCH_SIZE] for i in range(0, len(run), BATCH_SIZE)):
                indices = torch.stack([image.indices for image, _ in batch])
                decoded = decode_tiles(tokenizer, indices.to(tokenizer.device), tiling, num_tokens)
                for image, (_, file) in zip(decoded, batch):
                    save_picture(to_pil(image.float().cpu()), file)
                advance(len(batch))
    say(f"{count_images(len(files))}: {out}")
    again = ["reconstruct", *naming(model, subfolder), str(files[0]), "--out", "again.png"]
    say_next(["spectok", *again])


def new_files(folder: Path, names: list[str]) -> list[Path]:
    """Return where decoded images go: PNG files in a folder, called as the images were.

    Raises:
        ConfigError: If one of them is there already: it may be an original.
    """
    files = [folder / f"{stem}.png" for stem in distinct_stems(names)]
    there = [file for file in files if os.path.lexists(file)]
    if there:
        more = f" and {len(there) - 1:,} more" * (len(there) > 1)
        raise ConfigError(f"{there[0]}{more} would be overwritten; give another --out")
    return files


def distinct_stems(names: list[str]) -> list[str]:
    """Return a file stem for each image: its own name, numbered if not unique."""
    own = [Path(name).stem for name in names]
    counts: dict[str, int] = {}
    taken, stems = set(own), []
    for stem in own:
        counts[stem] = number = counts.get(stem, 0) + 1
        while number > 1 and f"{stem}-{number}" in taken:
            counts[stem] = number = number + 1
        stems.append(stem if number == 1 else f"{stem}-{number}")
        taken.add(stems[-1])
    return stems
