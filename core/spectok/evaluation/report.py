"""A comparison as a table, in Markdown, and as a picture with labelled rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from spectok.errors import CheckpointError
from spectok.images import make_grid, save_picture, to_pil
from spectok.writing import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {"psnr": ".2f", "ssim": ".4f", "mse": ".5f", "lpips": ".4f", "rfid": ".2f", "fid": ".2f"}
GAP = 4  # pixels
FONT_SIZE = 16  # pixels


def table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a comparison."""
    results: Mapping[str, Any] = record["tokenizers"]
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    columns = ["tokenizer", *(_title(name) for name in names)]
    columns += ["usage", "perplexity", "bits", "parameters", "images/s", "s/step", "minutes"]
    return columns, [_row(label, result, names) for label, result in results.items()]


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return a page with the table, the terms, and the metrics that were not measured."""
    columns, rows = table(record)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([*lines, "", *(f"- {line}" for line in remarks(record)), ""])


def remarks(record: Mapping[str, Any]) -> list[str]:
    """Return lines on the terms of a comparison and on the metrics that were not measured."""
    data, machine = record["data"], record["machine"]
    first: Mapping[str, Any] = next(iter(record["tokenizers"].values()))
    found = [
        f"{data['num_images']:,} images of {data['name']}/{data['split']}, protocol "
        f"{record['protocol']['id']}, on {machine['processor']}, {machine['threads']} thread(s), "
        f"{machine['device']}"
    ]
    if "steps" in first:
        found.append(f"{first['steps']:,} steps of {first['images_per_step']} images each")
    found += [f"{name} not measured: {why}" for name, why in first["not_measured"].items()]
    return found


def labelled_rows(rows: Mapping[str, Float[Tensor, "n c h w"]]) -> Image:
    """Draw rows of images, each with its label on the left.

    Args:
        rows: Label -> the same number of images in [-1, 1].
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    drawn = [_grid_row(images) for images in rows.values()]
    margin = 2 * GAP + int(max(font.getlength(label) for label in rows))
    width, height = drawn[0].width, drawn[0].height
    size = (margin + width, len(drawn) * (height + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for number, (label, row) in enumerate(zip(rows, drawn)):
        top = number * (height + GAP)
        picture.paste(row, (margin, top))
        pen.text((GAP, top + height // 2), label, fill="black", font=font, anchor="lm")
    return picture


def write_report(record: Mapping[str, Any], rows: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``comparison.md`` and ``comparison.png``.

    Raises:
        SpectokError: If one cannot be written.
    """
    write_text(folder / "comparison.md", to_markdown(record), CheckpointError)
    save_picture(labelled_rows(rows), folder / "comparison.png")


def format_metric(name: str, value: float) -> str:
    """Return a metric's value with its significant digits."""
    return format(value, FORMATS.get(name, ".4g"))


def _row(label: str, result: Mapping[str, Any], names: list[str]) -> list[str]:
    metrics, per_step = result["metrics"], result.get("seconds_per_step")
    minutes = result.get("training_seconds")
    return [
        label,
        *(format_metric(name, metrics[name]) if name in metrics else "–" for name in names),
        f"{100 * result['codebook_usage']:.1f} %{_distinct(result, 'usage', 100)}",
        f"{result['perplexity']:.1f}{_distinct(result, 'perplexity', 1)}",
        f"{result['bits_per_image']:g}",
        f"{result['parameters']:,}",
        f"{result['images_per_second']:.0f}",
        "–" if per_step is None else f"{per_step:.3f}",
        "–" if minutes is None else f"{minutes / 60:.1f}",
    ]


def _distinct(result: Mapping[str, Any], name: str, scale: float) -> str:
    """Return what is left once twins count as one code, where there are twins."""
    if result.get("distinct_usage") in (None, result["codebook_usage"]):
        return ""
    return f" ({scale * result[f'distinct_{name}']:.1f} distinct)"


def _title(name: str) -> str:
    return name.upper() if len(name) <= 5 else name


def _grid_row(images: Tensor) -> Image:
    from spectok.images import enlarge

    return to_pil(make_grid(enlarge(images), columns=len(images))).convert("RGB")
