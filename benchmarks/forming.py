"""What forms in training: reconstructions at each kept checkpoint of one or several runs.

    python benchmarks/forming.py runs/qgvae-cifar10 runs/vqvae-cifar10 --out forming.png
    python benchmarks/forming.py RUN RUN --out forming.png --rows 6 --images 6 --data DIR

After Fig. 11 of the paper of QG-VAE: a block per run, a row per kept checkpoint, a column per
held-out image; the originals come first. A run keeps more checkpoints with ``train.keep_last``.
``--rows`` draws fewer of them: for a single run spread over its steps; for several, as in the
paper, those nearest to PSNRs that all runs passed through, so that a row has about one PSNR; the
nearest may be the same one twice.

In numbers, in a file beside the picture that ends in ``.json``: the squared error of ``--measured``
held-out images, decoded from tokens, is split by radial frequency, below and from ``--cut`` cycles
per pixel. ``unexplained`` is the error over the energy that the images have in that band around
the mean image, so 1 is what the mean image alone would leave. ``formed`` is the share of what is
explained at the last checkpoint that is explained already; a band ``forms_at`` the first kept
checkpoint with 0.9 of it. ``high_share`` is the high band's share of all error. Checkpoints hold
the weights of training itself, without the average that ``train.ema_decay`` saves.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from one_line import positive, run_program
from safetensors.torch import load_model
from torch import Tensor

from spectok import ImageTokenizer, load_tokenizer
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.errors import ConfigError, InputError
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import interior_of
from spectok.images import make_grid
from spectok.machine import describe_machine
from spectok.metrics import psnr
from spectok.recipes.files import CHECKPOINTS, RUN_RECIPE
from spectok.training import TokenizerRecipe, load_tokenizer_recipe
from spectok.training.checkpoint import list_checkpoints, read_manifest
from spectok.writing import write_text

BANDS = ("low", "high")
FORMED = 0.9


class Kept(NamedTuple):
    """What one checkpoint makes of the held-out images."""

    numbers: dict[str, Any]
    shown: Tensor


class Reference(NamedTuple):
    """The held-out images, and their energy in each band around the mean image."""

    images: Tensor
    energy: dict[str, float]


def main() -> None:
    """Measure the checkpoints of each run, and draw some of their reconstructions."""
    arguments = parse()
    runs = {folder: open_run(folder, arguments) for folder in arguments.runs}
    names = name_runs(arguments.runs)
    dataset = common_images([dataset for _, dataset in runs.values()])
    reference = make_reference(dataset, arguments.cut)
    found = {
        name: follow(folder, recipe, dataset, reference, arguments)
        for name, (folder, (recipe, _)) in zip(names, runs.items())
    }
    drawn = choose_rows(found, arguments.rows)
    draw(reference.images[: arguments.images], drawn).savefig(arguments.out, dpi=150)
    record = {
        "command": f"python benchmarks/forming.py {shlex.join(words_without_folders())}",
        "cut": arguments.cut,
        "num_images": len(reference.images),
        "protocol": make_protocol(dataset, "float32", 0, {}),
        "machine": describe_machine(),
        "runs": {name: summarise([k.numbers for k in kept]) for name, kept in found.items()},
    }
    target = arguments.out.with_suffix(".json")
    write_text(target, json.dumps(record, indent=1) + "\n", InputError)
    for name, run in record["runs"].items():
        print(name, ", ".join(f"{band} forms at {step}" for band, step in run["forms_at"].items()))
    print(f"{arguments.out}, {target}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, such as x.png")
    parser.add_argument("--images", type=positive, default=8, help="images in a row")
    parser.add_argument("--rows", type=positive, help="rows to draw (default: every checkpoint)")
    parser.add_argument("--measured", type=positive, default=500, help="images to measure")
    parser.add_argument("--cut", type=float, default=0.125, help="cycles per pixel")
    parser.add_argument("--data", help="where the data are, if not where they were")
    arguments = parser.parse_args()
    if not 0 < arguments.cut < 0.5 or min(arguments.images, arguments.measured) < 1:
        parser.error("--cut is between 0 and 0.5; --images and --measured are at least 1")
    if arguments.rows is not None and arguments.rows < 1:
        parser.error("--rows is at least 1")
    arguments.measured = max(arguments.measured, arguments.images)
    return arguments


def words_without_folders() -> list[str]:
    """Return the words of the command line; of a path, its last part."""
    return [Path(word).name if "/" in word else word for word in sys.argv[1:]]


def name_runs(folders: list[Path]) -> list[str]:
    """Return a label for each run: the name of its folder.

    Raises:
        ConfigError: If two runs have one name.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"runs {', '.join(names)} have one name; copy or link one to another")
    return names


def open_run(folder: Path, arguments: argparse.Namespace) -> tuple[TokenizerRecipe, ImageDataset]:
    """Return the recipe of a run, and held-out images at its size.

    Raises:
        ConfigError: If the folder holds no run.
    """
    if not (folder / RUN_RECIPE).is_file() or not list_checkpoints(folder / CHECKPOINTS):
        raise ConfigError(f"{folder} holds no run with checkpoints; give the folder of a training")
    recipe = load_tokenizer_recipe(folder / RUN_RECIPE)
    changes = {"split": "test", "limit": arguments.measured, "horizontal_flip": False}
    changes |= {"max_shift": 0} | ({"path": arguments.data} if arguments.data else {})
    data = DataConfig.model_validate(recipe.data.model_dump() | changes)
    return recipe, build_dataset(data, train=False)


def common_images(datasets: list[ImageDataset]) -> ImageDataset:
    """Return the held-out images of all runs.

    Raises:
        ConfigError: If they differ.
    """
    if len({dataset.fingerprint for dataset in datasets}) > 1:
        raise ConfigError(
            "the runs have different held-out images, or of different sizes; give runs on one "
            "data set at one size"
        )
    return datasets[0]


def make_reference(dataset: ImageDataset, cut: float) -> Reference:
    """Return all held-out images, inside an added border, and the energy of their bands."""
    images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
    images = interior_of(images, dataset)
    return Reference(images, band_energies(images - images.mean(0), cut))


def band_energies(difference: Tensor, cut: float) -> dict[str, float]:
    """Return the energy of differences (B, C, H, W) below and from a radial frequency on.

    The two add up to the sum of squares of all pixels, by Parseval's theorem.

    Args:
        difference: What is measured.
        cut: First frequency of the high band, in cycles per pixel.
    """
    rows, columns = (torch.fft.fftfreq(size) for size in difference.shape[-2:])
    high = (rows[:, None].square() + columns.square()).sqrt() >= cut
    energy = torch.fft.fft2(difference.double(), norm="ortho").abs().square().sum((0, 1))
    return {"low": energy[~high].sum().item(), "high": energy[high].sum().item()}


@torch.no_grad()
def follow(
    folder: Path,
    recipe: TokenizerRecipe,
    dataset: ImageDataset,
    reference: Reference,
    arguments: argparse.Namespace,
) -> list[Kept]:
    """Measure every kept checkpoint of a run, in order of steps."""
    options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
    model = load_tokenizer(recipe.tokenizer["name"], **options).eval()
    found = []
    for checkpoint in list_checkpoints(folder / CHECKPOINTS):
        load_model(model, checkpoint / "model.safetensors")
        decoded = interior_of(reconstruct(model, dataset), dataset)
        errors = band_energies(decoded - reference.images, arguments.cut)
        numbers = {
            "step": read_manifest(checkpoint)["step"],
            "psnr": psnr(reference.images, decoded).mean().item(),
            "unexplained": {band: errors[band] / reference.energy[band] for band in BANDS},
            "high_share": errors["high"] / sum(errors.values()),
        }
        print(folder.name, numbers["step"], f"{numbers['psnr']:.2f} dB", flush=True)
        found.append(Kept(numbers, decoded[: arguments.images]))
    return found


def reconstruct(model: ImageTokenizer, dataset: ImageDataset, batch_size: int = 64) -> Tensor:
    """Return all images encoded to tokens and decoded again."""
    rows = torch.arange(len(dataset)).split(batch_size)
    batches = (torch.stack([dataset[int(i)]["images"] for i in part]) for part in rows)
    return torch.cat([model.decode(model.encode(batch)) for batch in batches])


def summarise(numbers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a run's numbers, with how far each band has formed at each checkpoint."""
    last = numbers[-1]["unexplained"]
    forms_at: dict[str, int | None] = dict.fromkeys(BANDS)
    checkpoints = []
    for entry in numbers:
        formed = {
            band: (1 - entry["unexplained"][band]) / (1 - last[band]) if last[band] < 1 else None
            for band in BANDS
        }
        checkpoints.append(entry | {"formed": formed})
        for band, share in formed.items():
            if forms_at[band] is None and share is not None and share >= FORMED:
                forms_at[band] = entry["step"]
    return {"forms_at": forms_at, "checkpoints": checkpoints}


def choose_rows(found: dict[str, list[Kept]], rows: int | None) -> dict[str, list[Kept]]:
    """Return the checkpoints to draw of each run.

    Of several runs, those nearest to PSNRs spread over the range that all of them passed through.

    Raises:
        ConfigError: If several runs have no PSNR in common.
    """
    if rows is None:
        return found
    if len(found) == 1:
        return {name: [kept[i] for i in spread(len(kept), rows)] for name, kept in found.items()}
    reached = {name: [k.numbers["psnr"] for k in kept] for name, kept in found.items()}
    low, high = max(map(min, reached.values())), min(map(max, reached.values()))
    if low > high:
        raise ConfigError("the runs have no PSNR in common; leave --rows out to draw them all")
    wanted = torch.linspace(low, high, rows).tolist()
    return {
        name: [min(kept, key=lambda k: abs(k.numbers["psnr"] - target)) for target in wanted]
        for name, kept in found.items()
    }


def spread(count: int, rows: int) -> list[int]:
    """Return up to ``rows`` of ``count`` places, the first and the last among them."""
    return sorted(set(torch.linspace(0, count - 1, min(rows, count)).round().int().tolist()))


def draw(originals: Tensor, found: dict[str, list[Kept]]) -> Figure:
    """Draw a block per run: originals, then a row per checkpoint with its step and PSNR."""
    height = originals.shape[-2] + 2
    rows, columns = max(map(len, found.values())) + 1, len(originals)
    size = (len(found) * (0.5 * columns + 1.5), 0.5 * rows + 0.4)
    figure, axes = plt.subplots(1, len(found), figsize=size, squeeze=False, layout="constrained")
    for name, kept, axis in zip(found, found.values(), axes[0]):
        grid = make_grid(torch.cat([originals, *(k.shown for k in kept)]), columns)
        picture = grid.expand(3, -1, -1).permute(1, 2, 0)
        axis.imshow(picture.numpy(), interpolation="nearest")
        labels = [f"{k.numbers['step']:,}\n{k.numbers['psnr']:.1f} dB" for k in kept]
        places = [row * height + height / 2 - 1 for row in range(len(kept) + 1)]
        axis.set_yticks(places, ["image", *labels], fontsize=6)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(name, fontsize=8)
    return figure


if __name__ == "__main__":
    run_program(main)
