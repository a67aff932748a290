"""``spectok info``, ``reconstruct`` and ``changes``: a tokenizer, its images, an edit's tokens."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectok.cli.by_model import DEFAULT, ModelCommand, add_group
from spectok.cli.completing import complete_model
from spectok.cli.console import (
    batches,
    find_images,
    load_on_device,
    naming,
    naming_image,
    note_resizing,
    originals,
    parse_size,
    say_next,
)
from spectok.errors import ConfigError
from spectok.messages import count_images, note, say

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from spectok.token_spec import TokenSpec
    from spectok.tokenizer import ImageTokenizer

COLUMNS = 8
SHOWN_PLACES = 40
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Model = Annotated[
    str,
    typer.Argument(
        autocompletion=complete_model,
        help="Trained model: its folder, that of its run, a name, or a hub id.",
    ),
]
Subfolder = Annotated[
    str | None,
    typer.Option(help="Folder inside MODEL (default: the one its model_index.json says)."),
]
Images = Annotated[list[str], typer.Argument(help="Image files, or directories of images.")]
NumTokens = Annotated[
    int | None, typer.Option(min=0, help="Decode only the first tokens of each image.")
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option("--image-size", help="Size the images are brought to: 256, or 256x384 (H x W)."),
]
Original = Annotated[bool, typer.Option("--original", help="Take the images at their own sizes.")]
Tile = Annotated[
    int | None,
    typer.Option(min=1, help="Cut the images, at their own sizes, into tiles of so many pixels."),
]
Overlap = Annotated[
    int | None,
    typer.Option(min=0, help="Pixels that tiles share (default: a quarter of a tile)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands."""
    group = add_group(app, "info", "Show what a model is: its tokens, bits per image and size.")
    group.command(DEFAULT, cls=ModelCommand)(info)
    app.command("reconstruct")(reconstruct)
    app.command("changes")(changes)


def info(
    model: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_model, help="A trained model, or the key of an untrained one."
        ),
    ],
    as_json: AsJson = False,
    subfolder: Subfolder = None,
) -> None:
    """Show a tokenizer's tokens, bits per image and size."""
    from spectok.loading import load_tokenizer
    from spectok.plugins.registry import list_tokenizers

    is_key = model in list_tokenizers()
    inside = {} if subfolder is None else {"subfolder": subfolder}
    if show_facts(describe(load_tokenizer(model, **inside)), as_json):
        return
    if is_key:
        say_next(["spectok", "train", model])
    else:
        say_next(
            ["spectok", "reconstruct", *naming(model, subfolder), "IMAGE", "--out", "grid.png"]
        )


def describe(tokenizer: ImageTokenizer) -> dict[str, Any]:
    """Return what ``spectok info`` shows, as plain JSON types."""
    spec, pixels = tokenizer.token_spec, math.prod(tokenizer.image_shape[1:])
    return {
        "class": type(tokenizer).__name__,
        "quantizer": type(tokenizer.quantizer).__name__,
        "image_shape": list(tokenizer.image_shape),
        "latent_shape": list(tokenizer.latent_shape),
        "other_sizes": tokenizer.why_fixed_size() or f"multiples of {tokenizer.size_multiple}",
        **describe_tokens(spec),
        "bits_per_pixel": spec.bits_per_image / pixels,
        "parameters": count_parameters(tokenizer),
    }


def describe_tokens(spec: TokenSpec) -> dict[str, Any]:
    """Return what ``spectok info`` shows of a layout of tokens, as plain JSON types."""
    return {
        "tokens": spec.num_tokens,
        "levels": spec.to_dict()["levels"],
        "order": spec.order,
        "prefix": spec.prefix,
        "bits_per_image": spec.bits_per_image,
    }


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers are trained in a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def show_facts(facts: dict[str, Any], as_json: bool) -> bool:
    """Print what a model is; return whether it was printed for another program."""
    if as_json:
        say(json.dumps(facts, indent=2))
        return True
    width = max(map(len, facts))
    for name, value in facts.items():
        for i, line in enumerate(value if name == "levels" else [value]):
            say(f"{name if i == 0 else '':{width}}  {_show(line)}")
    return False


def _show(value: Any) -> str:
    if isinstance(value, dict):
        shape = "×".join(map(str, value["shape"]))
        many = f", {value['num_codebooks']} codebooks" if value["num_codebooks"] > 1 else ""
        return f"{shape} tokens of {value['vocab_size']} values ({value['codebook']}{many})"
    if isinstance(value, list):
        return "×".join(map(str, value))
    return str(value) if isinstance(value, str) else f"{value:,}"


def reconstruct(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help="Picture to write.")],
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many images.")] = 32,
    num_tokens: NumTokens = None,
    image_size: ImageSizeOption = None,
    original: Original = False,
    tile: Tile = None,
    overlap: Overlap = None,
    subfolder: Subfolder = None,
) -> None:
    """Show images above their reconstructions by a tokenizer."""
    check_picture(out)
    check_sizing(image_size, original, tile, overlap)
    files = find_images(images)
    check_not_read(out, files)
    if len(files) > limit:
        note(f"showing the first {limit} of {len(files)} images; --limit shows more")
        files = files[:limit]
    tokenizer = load_on_device(model, subfolder)

    import torch

    from spectok.images import enlarge, on_white, save_grid
    from spectok.metrics import psnr
    from spectok.sizes import size_of
    from spectok.tiling import decode_tiles, encode_tiles, plan_tiles

    own_sizes = original or tile is not None
    if not own_sizes:
        tokenizer = tokenizer.at_size(parse_size(image_size)) if image_size else tokenizer
        note_resizing(files, tokenizer.image_shape)
    load = originals if own_sizes else batches
    pairs, bits = [], 0.0
    with torch.no_grad():
        for number, batch in enumerate(load(files, tokenizer, "reconstructing")):
            with naming_image(files[number] if own_sizes else None):
                tiling = plan_tiles(tokenizer, size_of(batch), tile=tile, overlap=overlap)
            indices = encode_tiles(tokenizer, batch, tiling)
            decoded = decode_tiles(tokenizer, indices, tiling, num_tokens)
            spec = tokenizer.token_spec_at(tiling.tile_size)
            bits += len(batch) * tiling.num_tiles * spec.bits_per_image / len(files)
            pairs += torch.stack([batch, decoded], dim=1).float().cpu()  # each (2, C, H, W)
    quality = torch.cat([psnr(*pair.split(1)) for pair in pairs]).mean()
    shown, reconstructions = on_white(pairs).unbind(1)
    columns = min(len(files), COLUMNS)
    save_grid(enlarge(pair_rows(shown, reconstructions, columns)), out, columns)
    say(f"{count_images(len(files))}, {bits:,.0f} bits each, PSNR {quality:.2f} dB: {out}")
    say_next(["spectok", "encode", *naming(model, subfolder), *images, "--out", "tokens.npz"])


def changes(
    model: Model,
    before: Annotated[str, typer.Argument(help="Image file.")],
    after: Annotated[str, typer.Argument(help="The same image, edited.")],
    out: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    as_json: AsJson = False,
    subfolder: Subfolder = None,
) -> None:
    """Show which tokens an edit of an image changes (Fig. 12 of QG-VAE)."""
    files = [find_images([name])[0] for name in (before, after)]
    if out is not None:
        check_picture(out)
        check_not_read(out, files)
    tokenizer = load_on_device(model, subfolder)

    import torch

    from spectok.images import enlarge, save_grid

    note_resizing(files, tokenizer.image_shape)
    with torch.no_grad():
        images = torch.cat([batch for batch in batches(files, tokenizer, "encoding")])
        indices = tokenizer.encode(images)
        decoded = tokenizer.decode(indices).float().cpu()
    pixels = images.float().cpu()
    facts = describe_changes(tokenizer.token_spec, pixels, decoded, indices.cpu())
    if as_json:
        say(json.dumps(facts))
    else:
        say(
            f"{facts['changed_tokens']} of {facts['tokens']} tokens changed, "
            f"{facts['changed_pixels']:,} of {facts['pixels']:,} pixels edited, "
            f"{facts['changed_reconstruction']:,} pixels of the reconstruction"
        )
        for number, level in enumerate(facts["levels"]):
            name = f"level {number}: " if len(facts["levels"]) > 1 else ""
            say(f"{name}{level['changed']} of {level['tokens']} at {_places(level['positions'])}")
    if out is not None:
        rows = torch.stack([pixels, decoded]).flatten(0, 1)  # two images, two reconstructions
        differences = (rows[1::2] - rows[0::2]).abs() - 1  # black where equal
        columns = [rows[0], rows[1], differences[0], rows[2], rows[3], differences[1]]
        save_grid(enlarge(torch.stack(columns)), out, 3)
        if not as_json:
            say(f"before, after, difference; below, the reconstructions: {out}")


def describe_changes(
    spec: TokenSpec,
    images: Float[Tensor, "2 c h w"],
    reconstructions: Float[Tensor, "2 c h w"],
    indices: Int[Tensor, "2 t"],
) -> dict[str, Any]:
    """Return what differs between two images, their tokens and their reconstructions.

    Args:
        spec: Layout of the tokens.
        images: In [-1, 1].
        reconstructions: Decoded from the tokens.
        indices: Tokens.
    """
    from spectok.images import to_uint8

    def pixels_changed(pair: Tensor) -> int:
        first, second = to_uint8(pair)
        return int((first != second).any(0).sum())

    changed = (indices[0] != indices[1]).tolist()
    levels = []
    for level in range(spec.num_levels):
        places = [i for i, owner in enumerate(spec.level_of_place) if owner == level]
        positions = [n for n, place in enumerate(places) if changed[place]]
        levels.append({"tokens": len(places), "changed": len(positions), "positions": positions})
    return {
        "tokens": spec.num_tokens,
        "changed_tokens": sum(changed),
        "pixels": images[0, 0].numel(),
        "changed_pixels": pixels_changed(images),
        "changed_reconstruction": pixels_changed(reconstructions),
        "levels": levels,
    }


def _places(positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:SHOWN_PLACES]))
    more = len(positions) - SHOWN_PLACES
    return f"{shown or 'no place'}{f' and {more} more' if more > 0 else ''}"


def check_sizing(
    image_size: str | None, original: bool, tile: int | None, overlap: int | None
) -> None:
    """Refuse options about the size of images that do not go together.

    Raises:
        ConfigError: Names them.
    """
    if image_size is not None and (original or tile is not None):
        raise ConfigError(
            "--image-size resizes the images, and --original and --tile leave their sizes alone; "
            "give one of them"
        )
    if overlap is not None and tile is None:
        raise ConfigError(f"--overlap {overlap} is of tiles; give --tile too")


def check_not_read(out: Path, files: Iterable[Path]) -> None:
    """Refuse a picture to write that is one of the images to read.

    Raises:
        ConfigError: If it is one of them, by whatever name.
    """
    if out.exists() and any(os.path.samefile(out, file) for file in files):
        raise ConfigError(f"--out {out} is one of the images to read; give another name")


def check_picture(path: Path, option: str = "--out") -> None:
    """Refuse a file that is not a picture's or cannot be written, before any work is done.

    Args:
        path: The file.
        option: The option that gave it, for messages.

    Raises:
        ConfigError: If the suffix is not a picture format's, or the file cannot be written.
    """
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{option} {path} does not end in a picture format, such as grid.png")
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    fits = path.is_file() if existing == path else existing.is_dir()
    if not fits or not os.access(existing, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written; give a file in a folder of your own")


def pair_rows(
    originals: Float[Tensor, "n c h w"], reconstructions: Float[Tensor, "n c h w"], columns: int
) -> Float[Tensor, "m c h w"]:
    """Order images for a grid: a row of originals, a row of their reconstructions, and so on.

    Args:
        originals: Images.
        reconstructions: The same number of images.
        columns: Images per row; the last rows are filled up with white.
    """
    import torch

    parts = []
    for first, second in zip(originals.split(columns), reconstructions.split(columns)):
        blank = first.new_ones(columns - len(first), *first.shape[1:])
        parts += [first, blank, second, blank]
    return torch.cat(parts)
