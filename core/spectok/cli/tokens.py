"""``spectok encode`` and ``spectok decode``: images to a file of integers, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import (
    BATCH_SIZE,
    batches,
    find_images,
    load_on_device,
    note_resizing,
    say_next,
)
from spectok.cli.models import Images, Model, NumTokens
from spectok.errors import ConfigError
from spectok.messages import count_images, progress, say

FORMATS = (".npz", ".json")


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok encode`` and ``spectok decode``."""
    app.command("encode")(encode)
    app.command("decode")(decode)


def encode(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help="File of tokens to write: .npz or .json.")],
) -> None:
    """Turn images into tokens."""
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out} does not end in .npz or .json")
    files = find_images(images)
    tokenizer = load_on_device(model)

    import torch

    from spectok.token_files import write_tokens

    note_resizing(files, tokenizer.image_shape)
    parts = [tokenizer.encode(batch).cpu() for batch in batches(files, tokenizer, "encoding")]
    spec = tokenizer.token_spec
    write_tokens(out, torch.cat(parts).numpy(), [str(file) for file in files], spec)
    size = f"{spec.num_tokens} tokens and {spec.bits_per_image:,.0f} bits each"
    say(f"{count_images(len(files))}, {size}: {out}")
    say_next(["spectok", "decode", model, str(out), "--out", "decoded"])


def decode(
    model: Model,
    tokens: Annotated[Path, typer.Argument(help="File of tokens that 'spectok encode' wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the images.")],
    num_tokens: NumTokens = None,
) -> None:
    """Turn tokens into images."""
    tokenizer = load_on_device(model)

    import torch

    from spectok.images import save_picture, to_pil
    from spectok.token_files import read_tokens

    indices, names = read_tokens(tokens, tokenizer.token_spec)
    files = [out / f"{name}.png" for name in distinct_stems(names)]
    with torch.no_grad(), progress("decoding", len(files)) as advance:
        for start in range(0, len(files), BATCH_SIZE):
            batch = torch.from_numpy(indices[start : start + BATCH_SIZE]).to(tokenizer.device)
            for image, file in zip(tokenizer.decode(batch, num_tokens), files[start:]):
                save_picture(to_pil(image.float().cpu()), file)
            advance(len(batch))
    say(f"{count_images(len(files))}: {out}")
    say_next(["spectok", "reconstruct", model, str(files[0]), "--out", "again.png"])


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
