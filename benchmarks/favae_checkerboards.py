"""Checkerboards in the first complement of FA-VAE's decoder, as in its Fig. 3, counted and drawn.

    python benchmarks/favae_checkerboards.py RUN… --data DIR --out checkerboards.png

A checkerboard is a pattern that repeats every two pixels. A smooth map that is multiplied by one
has its energy near half a cycle per pixel in rows, in columns, or in both. ``peak`` is the mean
energy of C_1 within 1/16 cycle of these three points, over that of all frequencies as high (7/16
cycles and more in rows or in columns): 1 where nothing stands out. The same of A_1, the encoder's
output that C_1 learns, and of reconstructions and images, is beside it. In the picture a row per
run: A_1 of some images, averaged over channels as in the paper, then C_1. A run is called like its
folder, and one of ``ablations.py`` like its variant.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from alike import check_alike
from matplotlib.figure import Figure
from one_line import positive, run_program
from torch import Tensor

from spectok.cli.models import check_picture
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.errors import ConfigError, InputError
from spectok.evaluation.protocol import make_protocol
from spectok.images import make_grid
from spectok.loading import load_trained
from spectok.machine import describe_machine
from spectok.recipes.files import RUN_RECIPE
from spectok.training import load_tokenizer_recipe
from spectok.writing import write_text
from spectok_favae.model import FAVAE
from spectok_favae.pictures import feature_pictures, features

HIGH, NEAR = 7 / 16, 1 / 16  # cycles per pixel
BATCH_SIZE = 64
IMAGES = 500


def main() -> None:
    """Measure the models of all runs, write numbers and draw."""
    arguments = parse()
    check_picture(arguments.out)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    models = open_models(arguments.runs)
    recipe = load_tokenizer_recipe(arguments.runs[0] / RUN_RECIPE)
    changes = {"split": "test", "limit": arguments.images, "path": arguments.data}
    data = DataConfig.model_validate(recipe.data.model_dump() | changes)
    dataset = build_dataset(data, train=False)
    images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
    drawn, found = {}, {}
    for name, model in models.items():
        found[name], drawn[name] = measure(model, images, arguments.shown)
        print(name, json.dumps(found[name]), flush=True)
    draw(drawn).savefig(arguments.out, dpi=150)
    words = ["RUN" for _ in arguments.runs]
    command = ["python", "benchmarks/favae_checkerboards.py", *words, "--data", "DIR"]
    command += ["--out", arguments.out.name]
    if arguments.images != IMAGES:
        command += ["--images", str(arguments.images)]
    write_text(
        arguments.out.with_suffix(".json"),
        json.dumps(record(shlex.join(command), dataset, found), indent=1) + "\n",
        InputError,
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a favae run")
    parser.add_argument("--data", help="folder with the images, if not where they were")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--images", type=positive, default=IMAGES, help="test images to measure")
    parser.add_argument("--shown", type=positive, default=4, help="images to draw")
    return parser.parse_args()


def open_models(folders: list[Path]) -> dict[str, FAVAE]:
    """Return the trained models of runs, by name.

    Raises:
        ConfigError: If two have the same name, or images of different shapes.
    """
    models: dict[str, FAVAE] = {}
    for folder in folders:
        place = folder.absolute()
        name = place.parent.name if place.name.startswith("seed-") else place.name
        if name in models:
            raise ConfigError(f"{folder}: {name} is given twice; rename a folder, or leave one out")
        models[name] = open_model(folder)
    check_alike(models)
    return models


def open_model(folder: Path) -> FAVAE:
    """Return the trained model of a run.

    Raises:
        ConfigError: If it is no FA-VAE, or one without complements.
    """
    model = load_trained(folder)
    if not isinstance(model, FAVAE) or model.config["fcm"] == "none":
        raise ConfigError(f"{folder} is no favae with complements")
    return model.eval()


def measure(model: FAVAE, images: Tensor, shown: int) -> tuple[dict[str, Any], Tensor]:
    """Return the peaks of a model's maps, and pictures: A_1 of some images, then C_1 of them."""
    energies: dict[str, list[Tensor]] = {}
    pictures: list[Tensor] = []
    for batch in images.split(BATCH_SIZE):
        activations, complements, decoded = features(model, batch)
        maps = {"A_1": activations[0], "C_1": complements[0], "decoded": decoded, "image": batch}
        for name, values in maps.items():
            energies.setdefault(name, []).append(energy(values).sum(0))
        if not pictures:
            pictures = [feature_pictures(maps[name][:shown]) for name in ("A_1", "C_1")]
    total = {name: torch.stack(parts).sum(0) for name, parts in energies.items()}
    return {name: {"peak": peak(value)} for name, value in total.items()}, torch.cat(pictures)


def energy(maps: Tensor) -> Tensor:
    """Return the energy of maps (B, C, H, W) at each frequency, summed over channels."""
    return torch.fft.fft2(maps.double(), norm="ortho").abs().square().sum(1)


def peak(total: Tensor) -> float:
    """Return the mean energy near the three checkerboards over that of all high frequencies.

    Args:
        total: Energy at each frequency, (H, W).
    """
    rows, columns = (torch.fft.fftfreq(size).abs() for size in total.shape)
    high = (rows[:, None] >= HIGH) | (columns >= HIGH)
    to_row, to_column = ((0.5 - rows).abs()[:, None], (0.5 - columns).abs())
    near = (to_row <= NEAR) & ((columns <= NEAR) | (to_column <= NEAR))
    near |= (rows[:, None] <= NEAR) & (to_column <= NEAR)
    return (total[near].mean() / total[high].mean()).item()


def draw(found: dict[str, Tensor]) -> Figure:
    """Draw a row per run."""
    figure, axes = plt.subplots(len(found), 1, figsize=(7, 1.1 * len(found)), squeeze=False)
    for axis, (name, pictures) in zip(axes[:, 0], found.items()):
        grid = make_grid(pictures, columns=len(pictures))
        axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(f"{name}: A_1, then C_1", fontsize=7, pad=2)
        axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    return figure


def record(command: str, dataset: ImageDataset, found: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured and how."""
    return {
        "command": command,
        "high": HIGH,
        "near": NEAR,
        "num_images": len(dataset),
        "protocol": make_protocol(dataset, "float32", 0, {}),
        "machine": describe_machine(),
        "runs": found,
    }


if __name__ == "__main__":
    run_program(main)
