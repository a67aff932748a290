"""Put a trained model into the package of trained models that is installed with spectok.

    python benchmarks/box.py RUN hrvqvae/cifar10 --data DIR [--result benchmarks/results/curves/…]
    python benchmarks/box.py RUN gpt/mnist-qgvae --data DIR   # a prior
    python benchmarks/box.py RUN cat/shapes                   # a prior that reads text: a pipeline

RUN is the folder of a run; its recipe, log and report of the data go into the model's card. A
tokenizer is stored as float16, and what is stored is what is measured: it is loaded again, and its
numbers are taken on the first 300 test images and on all of them. The card tells which share of the
tokens of 2,000 test images the rounding has changed. Nothing is written if that is more than 0.5 %,
if a model is larger than 3 MB, or all of them than 20 MB. A prior is stored as float16 too; its
card tells the bits of the test images' tokens, before and after. One that reads text is stored with
its tokenizer and its text encoder, of which only the words of the captions are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from box_files import MEASURED, give_license, halve, log_of, recipe_section, shrink
from box_priors import store_pipeline, store_prior
from one_line import run_program
from torch import Tensor

from spectok import ImageTokenizer, TrainedModel, load_tokenizer
from spectok.cards import CARD, Subject, write_card
from spectok.cards.folder import CURVE
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.data.report import DataReport
from spectok.errors import CheckpointError, ConfigError
from spectok.evaluation import evaluate
from spectok.evaluation.numbers import record_result
from spectok.evaluation.terms import recipe_of_run
from spectok.loading import load_trained, model_folder
from spectok.plugins.registry import get_dataset
from spectok.recipes.files import RUN_RECIPE
from spectok.recipes.yaml12 import dump_yaml
from spectok.training.card import describe_tokenizer
from spectok_generation import load_prior
from spectok_generation.folders import holds_prior

BOX = Path(__file__).parents[1] / "plugins" / "spectok_models"
COMPARED = 2000
"""Test images whose tokens are compared."""
MOST_CHANGED = 0.005
"""Share of tokens that rounding may change."""
LARGEST, LARGEST_OF_ALL = 3_000_000, 20_000_000
"""Bytes of a model's folder, and of all of them."""
BATCH_SIZE = 100


def main() -> None:
    """Read the command line, and store one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, of a model, or of a pipeline")
    parser.add_argument("name", help="its name, KEY/DATA")
    parser.add_argument("--data", help="folder with the test images of a tokenizer's data set")
    parser.add_argument("--license", default="apache-2.0", help="licence of the weights")
    parser.add_argument("--data-license", help="licence of the images, if no preset says it")
    parser.add_argument("--note", help="a sentence on the images, for the card")
    parser.add_argument("--result", type=Path, help="JSON file of benchmarks/curves.py on the run")
    parser.add_argument("--box", type=Path, default=BOX, help="the package of trained models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model")
        kind = store(arguments, made)
        target = arguments.box / f"{kind}s" / arguments.name
        check_size(made, target, arguments.box)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)
    if arguments.result:
        name_model(arguments.result, arguments.name)
    print(f"{arguments.name}: a {kind} of {size_of(target):,} bytes in {target}")


def store(arguments: argparse.Namespace, made: Path) -> str:
    """Write the folder of a model, and return its kind."""
    if arguments.name.count("/") != 1:
        raise ConfigError(f"{arguments.name!r} is not KEY/DATA, such as mine/digits")
    model = Path(model_folder(str(arguments.run)))
    if holds_prior(model) and load_prior(model).text_width:
        store_pipeline(arguments, model, made)
        return "pipeline"
    if holds_prior(model):
        store_prior(arguments, model, made)
        return "prior"
    if not arguments.data:
        raise ConfigError("a tokenizer is compared on test images of its data set; give --data")
    store_tokenizer(arguments, model, made)
    return "tokenizer"


# -- tokenizers ------------------------------------------------------------------------------------


def store_tokenizer(arguments: argparse.Namespace, model: Path, made: Path) -> None:
    """Write a tokenizer as float16, and its card, whose numbers are those of what was written."""
    tokenizer = load_trained(model)
    images = test_images(model, arguments.data, COMPARED)
    batches = list(torch.stack([item["images"] for item in images]).split(BATCH_SIZE))
    tokenizer.save_pretrained(made)
    halve(made)
    stored = load_tokenizer(made)
    changed = changed_tokens(tokenizer, stored, batches)
    (made / RUN_RECIPE).write_text(dump_yaml(recipe_section(model)), encoding="utf-8")
    subject = describe(arguments, stored, model, made, changed)
    write_card(made, subject, log_of(model))
    shrink(made / CURVE)
    for limit in MEASURED:
        images = test_images(model, arguments.data, limit)
        result = evaluate(stored, images)
        record_result(subject, made, result, test_config(model, None, limit))
        print(f"{len(images):,} images: {result['metrics']['psnr']:.3f} dB", flush=True)
    give_license(made / CARD, arguments.license)


@torch.no_grad()
def changed_tokens(before: ImageTokenizer, stored: ImageTokenizer, batches: list[Tensor]) -> float:
    """Return the share of tokens that storing a tokenizer has changed.

    Raises:
        CheckpointError: If it is more than ``MOST_CHANGED``.
    """
    differ = torch.cat([before.encode(images) != stored.encode(images) for images in batches])
    share = differ.double().mean().item()
    if share > MOST_CHANGED:
        raise CheckpointError(f"rounding to float16 changes {share:.2%} of the tokens")
    return share


def test_images(model: Path, data: str, limit: int | None) -> ImageDataset:
    """Return the first test images of the data set that a model was trained on."""
    return build_dataset(test_config(model, data, limit), train=False)


def test_config(model: Path, data: str | None, limit: int | None) -> DataConfig:
    """Return which images these are."""
    recipe = recipe_of_run(model)
    if recipe is None:
        raise ConfigError(f"no {RUN_RECIPE} beside {model} says what it was trained on")
    images = {"name": recipe.data.name, "path": data, "split": "test", "limit": limit}
    size = {"image_size": recipe.data.image_size, "channels": recipe.data.channels}
    return DataConfig.model_validate(images | size)


# -- cards -----------------------------------------------------------------------------------------


def describe(
    arguments: argparse.Namespace,
    stored: ImageTokenizer,
    model: Path,
    made: Path,
    changed: float,
) -> Subject:
    """Return what the card of a tokenizer says besides its numbers."""
    run, config = model.parent, test_config(model, None, None)
    source = get_dataset(config.name).describe()
    result = json.loads(arguments.result.read_text()) if arguments.result else {}
    last = (log_of(model) or [{}])[-1]
    subject = describe_tokenizer(stored, made, (config.name,))
    summary = (
        f"Its weights are stored as float16, which changed {changed:.2%} of the tokens of "
        f"{COMPARED:,} test images; tokens and numbers are those of the stored weights."
    )
    lines = read_report(run / "data_report.json") if (run / "data_report.json").exists() else []
    return replace(
        subject,
        name=arguments.name,
        summary=f"{subject.summary} {summary}",
        usage=subject.usage.replace("FOLDER", arguments.name),
        recipe=recipe_section(model),
        data=[*lines, *([("note", arguments.note)] if arguments.note else [])],
        dataset=source.hub_id,
        data_license=arguments.data_license or source.license or "not stated",
        steps=last.get("step"),
        seconds=last.get("seconds"),
        machine=machine_of(result),
    )


def machine_of(result: dict[str, Any]) -> dict[str, Any] | None:
    """Return the machine that a result names; results of earlier programs name it in words."""
    machine = result.get("machine")
    if isinstance(machine, str):
        versions = {"torch": str(result.get("torch", "of an unknown version"))}
        return {"device": "cpu", "processor": machine, "threads": 1, "versions": versions}
    return machine


def read_report(path: Path) -> list[tuple[str, str]]:
    """Return the report that a run kept on its images, as (heading, text) pairs."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    sizes = {tuple(map(int, size.split("x"))): n for size, n in kept["sizes"].items()}
    shape = tuple(kept["image_shape"])
    return DataReport(**{**kept, "sizes": sizes, "image_shape": shape}).lines()


def name_model(result: Path, name: str) -> None:
    """Write into a result under which name its model is installed."""
    content = json.loads(result.read_text(encoding="utf-8"))
    content.pop("model", None)
    content["trained_model"] = name
    result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# -- sizes -----------------------------------------------------------------------------------------


def check_size(made: Path, target: Path, box: Path) -> None:
    """Refuse a model that is too large to travel with the package.

    Raises:
        CheckpointError: If it is, or all of them are.
    """
    size = size_of(made)
    others = {model.folder for model in TrainedModel.below(box).values()} - {target}
    total = size + sum(map(size_of, others))
    for bytes_, limit, what in (
        (size, LARGEST, f"{target.name} has"),
        (total, LARGEST_OF_ALL, f"with it, the models in {box} have"),
    ):
        if bytes_ > limit:
            raise CheckpointError(f"{what} {bytes_:,} bytes, more than {limit:,}; nothing is kept")


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run_program(main)
