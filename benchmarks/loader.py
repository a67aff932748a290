"""Spectok's loader beside torchvision's and webdataset's, and what the loop adds to a step.

    python benchmarks/loader.py --data DIR --out benchmarks/results/loader.json
    python benchmarks/loader.py --data DIR --rounds 1 --sets small        # a trial

``DIR`` is CIFAR-10 as parquet. ``webdataset`` is needed for this alone: ``pip install webdataset``.

Loading: the same images, as PNG files of 32 pixels and as JPEG files of about 320 × 280 of which
the middle 256 × 256 are taken, are read by ``spectok`` (images that do not stay in memory), by
torchvision's ``ImageFolder`` with torch's ``DataLoader``, and by ``webdataset`` from tar shards of
the same files, with the same size of batch and number of workers. Each reads all images once, from
starting its workers to the last batch, and they take turns. Spectok with the pixels in memory, as
it keeps sets below 1 GiB, is told apart and compared with nothing.

Steps: a recipe is trained by spectok's loop and by a plain loop of the same network, optimiser and
images, in turns. Wall time and processor time of a step are both told; on a machine that does other
work only the second means much. The ratio that counts is the median over rounds.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_line import run_program
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from spectok import messages
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.data.folder import read_folder
from spectok.data.preprocessing import Preprocessing
from spectok.loading import load_tokenizer
from spectok.machine import describe_machine
from spectok.training import Callbacks, Run, TrainConfig, fit, load_tokenizer_recipe
from spectok.training.batches import Stream, make_loader
from spectok.training.objective import Objective
from spectok.training.optimizer import make_optimizer

BATCH_SIZE = 64
WORKERS = (0, 1, 2)
SHARDS = 8
OTHERS = ("torchvision", "webdataset")
SETS = {"small": (1024, 32, "png"), "large": (192, 256, "jpg")}
"""Images (whole batches of them), side in pixels after preprocessing, and suffix of the files."""
SKIPPED = 10
"""First steps of each training, which do not count."""


def main() -> None:
    """Measure loading and steps, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder with train.parquet")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--recipe", default="tokenizers/vqvae/digits", help="whose steps are timed")
    parser.add_argument("--steps", type=int, default=60, help="steps of a turn (default: 60)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if importlib.util.find_spec("webdataset") is None:
        sys.exit("error: webdataset is not installed; pip install webdataset")
    words = ["DIR" if word == arguments.data else word for word in sys.argv[1:]]
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/loader.py", *words]),
        "what": "images per second of three loaders, and seconds per step of two loops",
        "machine": describe_machine(),
        "others": {name: _version(name) for name in OTHERS},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "beside_other_work": os.getloadavg()[0] > 0.5,
        "batch_size": BATCH_SIZE,
        "rounds": arguments.rounds,
        "loading": {},
    }
    with tempfile.TemporaryDirectory() as folder, messages.silenced():
        for name in arguments.sets:
            files = write_images(arguments.data, Path(folder, name), *SETS[name])
            result["loading"][name] = compare_loaders(files, name, arguments.rounds)
            write(result, arguments.out)
        if arguments.steps:
            print(f"steps of {arguments.recipe}")
            steps = arguments.steps + SKIPPED
            result["steps"] = compare_loops(
                arguments.recipe, steps, arguments.rounds, Path(folder, "runs")
            )
    write(result, arguments.out)


def write(result: dict[str, Any], out: Path | None) -> None:
    """Write what was measured so far, if a file was named."""
    if out:
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


# -- loading ---------------------------------------------------------------------------------------


def write_images(data: str, folder: Path, count: int, size: int, suffix: str) -> Path:
    """Write images of CIFAR-10 as files below one folder per class, and as tar shards beside them.

    Args:
        data: Where CIFAR-10 is.
        folder: Where to write.
        count: Number of images.
        size: Side after preprocessing. Larger ones are enlarged from those of CIFAR-10, a quarter
            wider and a tenth higher than that, with some noise.
        suffix: ``png`` or ``jpg``.
    """
    config = DataConfig.model_validate({"name": "cifar10", "path": data, "limit": count})
    dataset, draws = build_dataset(config, train=False), np.random.default_rng(0)
    images, labels = dataset.uint8_images(), dataset.labels
    assert labels is not None
    places = [_made(folder / "shards") / f"{number}.tar" for number in range(SHARDS)]
    shards = [tarfile.open(place, "w") for place in places]  # noqa: SIM115 - closed below
    for number, (pixels, label) in enumerate(zip(images, labels)):
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        if size != image.width:
            image = image.resize((size * 5 // 4, size * 11 // 10), Image.Resampling.BICUBIC)
            noise = draws.normal(0, 6, (image.height, image.width, 3))
            image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
        path = _made(folder / "images" / str(label)) / f"{number:06d}.{suffix}"
        image.save(path, quality=90)
        shard = shards[number % SHARDS]
        shard.add(path, f"{number:06d}.{suffix}")
        _write_text(shard, f"{number:06d}.cls", str(label))
    for shard in shards:
        shard.close()
    return folder


def compare_loaders(folder: Path, name: str, rounds: int) -> dict[str, Any]:
    """Let the loaders take turns with each number of workers; return all that was measured."""
    count, size, _ = SETS[name]
    loaders = {
        "spectok": spectok_loader(folder / "images", size, 0),
        "torchvision": torchvision_loader(folder / "images", size),
        "webdataset": webdataset_loader(folder / "shards", size, count),
        "spectok in memory": spectok_loader(folder / "images", size, 1 << 30),
    }
    check_same_pixels(loaders, name)
    found: dict[str, Any] = {"images": count, "image_size": size}
    for workers in WORKERS:
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in loaders}
        for turn in range(rounds):
            sides = list(loaders)
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                times[side].append(timed(loaders[side], workers, count))
        found[f"{workers} workers"] = summary(times, count)
        print(f"{name:6s} {workers} workers  " + shown(found[f"{workers} workers"]), flush=True)
    return found


def check_same_pixels(loaders: dict[str, Callable[[int], Iterable[Any]]], name: str) -> None:
    """Stop if the loaders do not read the same pixels."""
    sums = {}
    for side, make in loaders.items():
        sums[side] = sum(images.double().add(1).sum().item() for images in make(0))
    least, most = min(sums.values()), max(sums.values())
    if most - least > 1e-5 * most:
        sys.exit(f"error: the loaders read other pixels of {name}: {sums}")


def spectok_loader(folder: Path, size: int, memory: int) -> Callable[[int], Iterable[Any]]:
    """Return a function that starts spectok's loader of one epoch.

    Args:
        folder: The images.
        size: Their side after preprocessing.
        memory: Bytes of pixels that may be kept.
    """
    settings = {"name": "folder", "path": str(folder), "image_size": size}
    config = DataConfig.model_validate(settings)
    rows = read_folder(folder, config)
    dataset = ImageDataset(rows, Preprocessing.resize_and_crop(size), memory_limit=memory)

    def start(workers: int) -> Iterable[Any]:
        stream = Stream(len(dataset), BATCH_SIZE, seed=0, first=0, last=len(dataset) // BATCH_SIZE)
        for batch in make_loader(dataset, stream, workers):
            yield batch["images"]

    return start


def transform(size: int) -> Callable[[Any], torch.Tensor]:
    """Return what spectok does with an image, of torchvision's parts."""
    return transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def torchvision_loader(folder: Path, size: int) -> Callable[[int], Iterable[Any]]:
    """Return a function that starts torch's loader of torchvision's folder of images."""
    dataset = ImageFolder(str(folder), transform(size))

    def start(workers: int) -> Iterable[Any]:
        for images, _ in DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers):
            yield images

    return start


def webdataset_loader(folder: Path, size: int, count: int) -> Callable[[int], Iterable[Any]]:
    """Return a function that starts webdataset's loader of tar shards."""
    wds: Any = importlib.import_module("webdataset")
    urls, change = sorted(str(path) for path in folder.glob("*.tar")), transform(size)

    def start(workers: int) -> Iterable[Any]:
        dataset = wds.WebDataset(urls, shardshuffle=SHARDS, empty_check=False).shuffle(1000)
        dataset = dataset.decode("pil").to_tuple("png;jpg", "cls").map_tuple(change, int)
        loader = wds.WebLoader(dataset.batched(BATCH_SIZE), batch_size=None, num_workers=workers)
        for images, _ in loader:
            yield images

    return start


def timed(start: Callable[[int], Iterable[Any]], workers: int, count: int) -> tuple[float, float]:
    """Read an epoch; return its seconds on the clock and of processors, workers included."""
    began, before, seen = time.perf_counter(), _processor_seconds(), 0
    for images in start(workers):
        seen += len(images)
    assert seen == count, f"{seen} images instead of {count}"
    return time.perf_counter() - began, _processor_seconds() - before


def summary(times: dict[str, list[tuple[float, float]]], count: int) -> dict[str, Any]:
    """Return images per second of each side, and spectok's ratios to the faster of the others.

    A ratio above 1 says that spectok is faster; both are medians of the ratios of single rounds.
    """
    found: dict[str, Any] = {}
    for side, values in times.items():
        found[side] = {
            "images_per_second": round(count / statistics.median(wall for wall, _ in values), 1),
            "images_per_processor_second": round(
                count / statistics.median(used for _, used in values), 1
            ),
            "seconds": [round(wall, 3) for wall, _ in values],
            "processor_seconds": [round(used, 3) for _, used in values],
        }
    for which, key in enumerate(("seconds", "processor_seconds")):
        ours = [value[which] for value in times["spectok"]]
        theirs = [min(turns) for turns in zip(*[[v[which] for v in times[o]] for o in OTHERS])]
        ratio = statistics.median(b / a for a, b in zip(ours, theirs))
        found[f"ratio_by_{key}"] = round(ratio, 3)
    return found


def shown(found: dict[str, Any]) -> str:
    """Return one line of a summary."""
    sides = [f"{s} {v['images_per_second']:.0f}/s" for s, v in found.items() if isinstance(v, dict)]
    wall, used = found["ratio_by_seconds"], found["ratio_by_processor_seconds"]
    return f"{', '.join(sides)}; ratio {wall} by the clock, {used} by processor time"


def _processor_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _write_text(shard: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(text)
    shard.addfile(entry, io.BytesIO(text.encode()))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


# -- steps -----------------------------------------------------------------------------------------


def compare_loops(name: str, steps: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Train a recipe by both loops in turns; return seconds per step and what ours adds."""
    recipe = load_tokenizer_recipe(name)
    settings = {"steps": steps, "save_every": 10**6, "sample_every": None, "num_workers": 0}
    config = recipe.train.model_copy(update=settings)
    dataset = build_dataset(recipe.data, seed=recipe.seed)
    times: dict[str, list[tuple[float, float]]] = {"spectok": [], "plain": []}
    for turn in range(rounds):
        for side in list(times)[:: 1 if turn % 2 else -1]:
            torch.manual_seed(0)
            options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
            model = load_tokenizer(recipe.tokenizer["name"], **options)
            if side == "plain":
                times[side].append(plain_loop(model, dataset, config))
            else:
                times[side].append(our_loop(model, dataset, config, folder / f"run-{turn}"))
    found: dict[str, Any] = {"recipe": name, "batch_size": config.batch_size, "steps": steps}
    found |= {"log_every": config.log_every, "skipped": SKIPPED}
    for side, values in times.items():
        found[side] = {
            "seconds": [round(wall, 6) for wall, _ in values],
            "processor_seconds": [round(used, 6) for _, used in values],
        }
    for which, key in enumerate(("seconds", "processor_seconds")):
        pairs = zip(times["spectok"], times["plain"])
        added = statistics.median(ours[which] / plain[which] for ours, plain in pairs) - 1
        found[f"added_by_{key}"] = round(added, 4)
        print(f"  {100 * added:+.1f} % {key} per step, beside the plain loop", flush=True)
    return found


def our_loop(model: Any, dataset: Any, config: TrainConfig, folder: Path) -> tuple[float, float]:
    """Train by spectok's loop; return the seconds of a step on the clock and of processors."""
    marks: list[tuple[float, float]] = []
    objective = Objective(model)

    def begin(step: int) -> None:
        objective.begin_step(step)
        marks.append((time.perf_counter(), time.process_time()))

    callbacks = Callbacks(
        begin_step=begin,
        before_step=lambda _: model.before_step(),
        after_step=lambda _, optimizers: model.after_step(optimizers),
    )
    fit(model, dataset, objective, config, Run(folder), callbacks=callbacks)
    return per_step(marks)


def plain_loop(model: Any, dataset: Any, config: TrainConfig) -> tuple[float, float]:
    """Train by the loop that one would write; return what :func:`our_loop` does."""
    marks: list[tuple[float, float]] = []
    model.train()
    optimizer = make_optimizer(model, config)
    loader = DataLoader(dataset, config.batch_size, shuffle=True, drop_last=True)
    step, losses = 0, []
    while step < config.steps:
        for batch in loader:
            marks.append((time.perf_counter(), time.process_time()))
            loss = torch.stack(list(model(batch["images"]).losses.values())).sum()
            loss.backward()
            model.before_step()
            optimizer.step()
            optimizer.zero_grad()
            model.after_step([optimizer])
            losses.append(loss.detach())
            step += 1
            if step % config.log_every == 0:
                with open(os.devnull, "w") as nowhere:
                    print(f"{step} {torch.stack(losses).mean():.4f}", file=nowhere)
                losses.clear()
            if step == config.steps:
                break
    return per_step(marks)


def per_step(marks: list[tuple[float, float]]) -> tuple[float, float]:
    """Return means over the steps between marks that count."""
    marks = marks[SKIPPED:]
    (wall, used), (end, used_end) = marks[0], marks[-1]
    return (end - wall) / (len(marks) - 1), (used_end - used) / (len(marks) - 1)


if __name__ == "__main__":
    run_program(main)
