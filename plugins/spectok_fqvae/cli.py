"""``spectok codes``: how trained tokenizers use their codes, and what single codes carry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectok.cli.console import load_on_device, print_table
from spectok.cli.evaluate import check_given
from spectok.cli.models import check_picture
from spectok.messages import count_images, note, progress, say

if TYPE_CHECKING:
    from spectok.data import ImageDataset
    from spectok.tokenizer import ImageTokenizer
    from spectok_fqvae.analysis import CodeStudy

BATCH_SIZE = 16


def add_commands(app: typer.Typer) -> None:
    """Add ``spectok codes``."""
    app.command("codes")(codes)


def codes(
    models: Annotated[
        list[str], typer.Argument(help="Trained models to draw together: folders or hub ids.")
    ],
    data: Annotated[
        str, typer.Option(help="Directory of images, parquet file, hub id or name of a data set.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write.")],
    limit: Annotated[int, typer.Option(min=1, help="Largest number of test images.")] = 200,
) -> None:
    """Draw how often each code is used, and how much information it carries."""
    check_picture(out)
    for model in models:
        check_given(model, data)

    from spectok_fqvae.pictures import draw_codes

    studies = {model: study_model(model, data, limit) for model in models}
    draw_codes(studies).savefig(out, dpi=150)
    columns = ["model", "codes", "used", "busiest code", "error without a code, mean"]
    print_table(columns, ([model, *describe(study)] for model, study in studies.items()))
    num_images = next(iter(studies.values())).num_images
    say(f"{count_images(num_images)} of the test split: {out}")


def study_model(model: str, data: str, limit: int) -> CodeStudy:
    """Load a model, and study its codes on test images."""
    import torch

    from spectok_fqvae.analysis import study_codes

    tokenizer = load_on_device(model)
    dataset = test_images(data, tokenizer, limit)
    with progress(f"studying {model}", len(dataset)) as advance:

        def batches():
            for start in range(0, len(dataset), BATCH_SIZE):
                items = [dataset[i]["images"] for i in range(len(dataset))[start:][:BATCH_SIZE]]
                yield torch.stack(items).to(tokenizer.device)
                advance(len(items))

        study = study_codes(tokenizer, batches())
    if study.information is None:
        note(f"{model} has several levels, so single codes cannot be left out")
    return study


def test_images(data: str, tokenizer: ImageTokenizer, limit: int) -> ImageDataset:
    """Return the first test images of a data set, in the shape that a tokenizer takes."""
    from spectok.data import DataConfig
    from spectok.data.choice import data_override
    from spectok.evaluation.resizing import dataset_for
    from spectok.recipes.recipe import apply_overrides

    channels, height, _ = tokenizer.image_shape
    raw = apply_overrides({}, [data_override(data)])["data"]
    raw |= {"image_size": height, "channels": channels, "split": "test", "limit": limit}
    return dataset_for(tokenizer, DataConfig.model_validate(raw))[0]


def describe(study: CodeStudy) -> list[str]:
    """Return a model's row of the table, after its name."""
    usage, information = study.usage.double(), study.information
    carried = "" if information is None else f"+{information.mean():.2e}"
    return [
        f"{len(usage):,}",
        f"{usage.gt(0).double().mean():.1%}",
        f"{usage.max() / usage.mean():.1f} times the mean",
        carried,
    ]
