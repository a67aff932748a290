"""``spectok rd``: rate and distortion of tokenizers beside JPEG, WebP and AVIF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectok.cli.console import load_on_device, say_next, this_command
from spectok.cli.evaluate import Limit, check_given, held_out
from spectok.cli.train import Data
from spectok.errors import ConfigError
from spectok.messages import count_images, say


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok rd``."""
    app.command("rd")(rd)


def rd(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [KEY=VALUE]...", help="Trained tokenizers; then settings of the data."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for rd.json, rd.md and rd.png.")],
    data: Data = None,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "test",
    limit: Limit = 256,
    anchor: Annotated[
        str, typer.Option(help="Rates are compared with this: jpeg, webp or avif.")
    ] = "webp",
) -> None:
    """Measure the real files of tokenizers against JPEG, WebP and AVIF at the same images."""
    models = [word for word in words if "=" not in word]
    if not models:
        raise ConfigError("no tokenizer is named; give the folders or names of trained ones")
    for model in models:
        check_given(model, data)
    tokenizers = {model: load_on_device(model) for model in models}

    import torch

    from spectok.codec import Codec
    from spectok.codec.rate_distortion import draw_rates, measure_rates, to_markdown
    from spectok.data import build_dataset
    from spectok.errors import DataError
    from spectok.evaluation.comparison import write_json
    from spectok.evaluation.protocol import make_protocol
    from spectok.machine import describe_machine
    from spectok.modeling import model_fingerprint
    from spectok.writing import whole_file, write_text

    channels, size = tokenizers[models[0]].image_shape[:2]
    settings = {"channels": channels, "image_size": size, "split": split, "limit": limit}
    overrides = [word for word in words if "=" in word]
    dataset = build_dataset(held_out(models[0], data, settings, overrides), train=False)
    images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
    codecs = {model: Codec(tokenizer) for model, tokenizer in tokenizers.items()}
    result = measure_rates(codecs, images, anchor, say)
    facts = {
        "command": this_command(),
        "weights": {model: model_fingerprint(tokenizer) for model, tokenizer in tokenizers.items()},
        "protocol": make_protocol(dataset, "float32", 0, {}),
        "machine": describe_machine(),
    }
    write_json({**facts, **result}, out / "rd.json")
    write_text(out / "rd.md", to_markdown(result), DataError)
    with whole_file(out / "rd.png", DataError) as unfinished:
        draw_rates(result).savefig(unfinished, dpi=120)
    say(to_markdown(result))
    say(
        f"{count_images(len(images))}; JPEG, WebP and AVIF on one mosaic of "
        f"{result['mosaic'][1]}×{result['mosaic'][0]} pixels; the weights of models are not counted"
    )
    say(f"table, numbers and picture: {out}/rd.md, rd.json, rd.png")
    say_next(["spectok", "compress", models[0], "IMAGES", "--out", "images.stk"])
