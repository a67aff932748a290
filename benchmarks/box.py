"""Put a trained model into the package of trained models that is installed with spectok.

    python benchmarks/box.py RUN hrvqvae/cifar10 --data DIR [--result benchmarks/results/curves/…]
    python benchmarks/box.py RUN gpt/mnist-qgvae --data DIR   # a prior, or an exported pipeline

RUN is the folder of a run; its recipe, log and report of the data go into the model's card. A
tokenizer is stored as float16, and what is stored is what is measured: it is loaded again, and its
numbers are taken on the first 300 test images and on all of them. The card tells which share of the
tokens of 2,000 test images the rounding has changed. Nothing is written if that is more than 0.5 %,
if a model is larger than 3 MB, or all of them than 20 MB. A prior is stored as float16 too; its
card tells the bits of the test images' tokens, before and after.
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
from diffusers.utils.constants import CONFIG_NAME
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectok import ImageTokenizer, TrainedModel, load_tokenizer
from spectok.cards import CARD, Claim, Subject, record_claim, write_card
from spectok.cards.file import read_header, replace_key, seal
from spectok.cards.folder import CURVE
from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.data.report import DataReport
from spectok.errors import CheckpointError, ConfigError
from spectok.evaluation import evaluate
from spectok.evaluation.terms import data_section, recipe_of_run
from spectok.loading import load_trained, model_folder
from spectok.machine import describe_machine
from spectok.modeling import read_config
from spectok.plugins.registry import get_dataset
from spectok.recipes.files import RUN_RECIPE
from spectok.recipes.yaml12 import dump_yaml, read_yaml
from spectok.saving import give_usual_permissions
from spectok.training.card import describe_tokenizer
from spectok.training.log import read_log
from spectok.weights import find_weights
from spectok_generation import Prior, load_prior, measure_likelihood
from spectok_generation.card import describe_prior
from spectok_generation.pipeline_folder import is_pipeline
from spectok_generation.prior_recipe import held_out
from spectok_generation.priors.factory import holds_prior

BOX = Path(__file__).parents[1] / "plugins" / "spectok_models"
COMPARED, MEASURED = 2000, (300, None)
"""Test images whose tokens are compared, and on how many the card claims numbers."""
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
    if not arguments.data:
        raise ConfigError("a model is measured on test images of its data set; give --data")
    model = Path(model_folder(str(arguments.run)))
    if is_pipeline(model):
        shutil.copytree(model, made)
        return "pipeline"
    if holds_prior(model):
        store_prior(arguments, model, made)
        return "prior"
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
        claim = Claim.from_result(
            result, subject.weights, data_section(test_config(model, None, limit))
        )
        record_claim(made, claim, subject)
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


def halve(folder: Path) -> None:
    """Store the floats of a saved model as float16.

    Raises:
        CheckpointError: If one of them is too large for it.
    """
    (path,) = find_weights(folder)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.half()
            if not tensors[name].isfinite().all():
                raise CheckpointError(f"{name} has numbers that are too large for float16")
    save_file(tensors, path, {"format": "pt"})
    give_usual_permissions(folder, CONFIG_NAME)


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


def log_of(model: Path) -> list[dict[str, Any]]:
    """Return the log of the run that holds a model."""
    return read_log(model.parent / "log.jsonl")


def recipe_section(model: Path) -> dict[str, Any]:
    """Return the recipe of a run as it was, today's defaults not filled in, without its places."""
    sections = read_yaml(model.parent / RUN_RECIPE)
    sections["data"].pop("path", None)
    return {name: section for name, section in sections.items() if name != "output"}


def give_license(card: Path, name: str) -> None:
    """Write the licence of the weights into a card."""
    text = replace_key(card.read_text(encoding="utf-8"), "license", name)
    assert read_header(text, str(card))["license"] == name
    card.write_text(seal(text), encoding="utf-8")


def shrink(picture: Path) -> None:
    """Store a picture, if there is one, with 64 colours: a third of the bytes."""
    if picture.exists():
        with Image.open(picture) as image:
            image.convert("RGB").quantize(64).save(picture, optimize=True)


def name_model(result: Path, name: str) -> None:
    """Write into a result under which name its model is installed."""
    content = json.loads(result.read_text(encoding="utf-8"))
    content.pop("model", None)
    content["trained_model"] = name
    result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# -- priors, and sizes -----------------------------------------------------------------------------


def store_prior(arguments: argparse.Namespace, model: Path, made: Path) -> None:
    """Write a prior as float16 whose tokenizer is in the box too, and its card.

    Raises:
        CheckpointError: If its tokenizer is not.
    """
    recorded = (read_config(model).get("tokenizer") or {}).get("path")
    if recorded not in TrainedModel.below(arguments.box):
        raise CheckpointError(
            f"the tokenizer of this prior is {recorded}, no trained model that is installed; put "
            f"that one into the box first, and train the prior on it by its name"
        )
    prior = load_prior(model)
    prior.save_pretrained(made)
    halve(made)
    (made / RUN_RECIPE).write_text(dump_yaml(recipe_section(model)), encoding="utf-8")
    stored, subject = load_prior(made), describe_prior(load_prior(made), made)
    source = get_dataset(recipe_section(model)["data"]["name"]).describe()
    last = (log_of(model) or [{}])[-1]
    subject = replace(
        subject,
        name=arguments.name,
        summary=f"{subject.summary} {bits(arguments, model, prior, stored)}",
        usage=subject.usage.replace("FOLDER", arguments.name).replace(
            ", with the folder of its tokenizer beside it or as --tokenizer", ""
        ),
        recipe=recipe_section(model),
        dataset=source.hub_id,
        data_license=arguments.data_license or source.license or "not stated",
        steps=last.get("step"),
        seconds=last.get("seconds"),
        machine=describe_machine(),
    )
    write_card(made, subject, log_of(model))
    shrink(made / CURVE)
    give_license(made / CARD, arguments.license)


def bits(arguments: argparse.Namespace, model: Path, prior: Prior, stored: Prior) -> str:
    """Measure the likelihood of test images before and after rounding, and tell it."""
    if stored.likelihood is None:
        return "Its weights are stored as float16."
    tokenizer = load_tokenizer(stored.tokenizer_record["path"])
    channels, size = tokenizer.image_shape[:2]
    settings = {"split": "test", "limit": None, "image_size": size, "channels": channels}
    config = held_out(str(model), None, settings, [f"path={arguments.data}"])
    images = build_dataset(config, train=False)
    found = [measure_likelihood(one, tokenizer, images) for one in (prior, stored)]
    before, after = (one["metrics"]["bits_per_image"] for one in found)
    print(f"{after:.2f} bits per image, {before:.2f} before rounding", flush=True)
    kind = "at most " if stored.likelihood == "bound" else ""
    return (
        f"Its weights are stored as float16, with which the tokens of the {len(images):,} test "
        f"images take {kind}{after:.1f} bits each ({before:.1f} before rounding; protocol "
        f"{found[1]['protocol']['id']}), of {tokenizer.token_spec.bits_per_image:g} if all codes "
        f"were equally likely."
    )


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
    main()
