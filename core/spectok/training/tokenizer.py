"""Training a tokenizer: what it adds to the loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError
from spectok.images import save_grid
from spectok.loading import load_tokenizer
from spectok.messages import console
from spectok.plugins import registry
from spectok.recipes.options import keep_earlier_options
from spectok.tokenizer import ImageTokenizer
from spectok.training.adversarial import Adversary
from spectok.training.batches import derive_seed
from spectok.training.config import TrainConfig
from spectok.training.contracts import FitResult, Hooks, Run
from spectok.training.loop import fit
from spectok.training.loss_config import AdversarialConfig, LossConfig
from spectok.training.objective import Objective
from spectok.training.resume import recorded_recipe

NUM_SAMPLES = 8


def train_tokenizer(
    tokenizer: Mapping[str, Any] | ImageTokenizer,
    data: DataConfig,
    config: TrainConfig,
    output: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    init_from: Path | str | None = None,
    losses: LossConfig | None = None,
    adversarial: AdversarialConfig | None = None,
) -> FitResult:
    """Train a tokenizer on images.

    Where the data has an added border, errors are counted inside it; a discriminator sees it all.

    The folder gets the trained model in ``model/``, and beside it ``recipe.yaml``,
    ``data_report.json``, ``log.jsonl``, ``samples/`` (originals over reconstructions) and
    ``checkpoints/``.

    Args:
        tokenizer: ``name`` and options of a registered tokenizer, or a model.
        data: The images.
        config: How to train.
        output: Folder of the run.
        seed: Decides initial weights, order of the data, augmentation and all else that is random.
        resume: Go on from the newest checkpoint in the folder.
        init_from: A trained tokenizer, of the same options, whose weights to start from.
        losses: What it is trained for besides its own terms, or instead of them.
        adversarial: The discriminator to train it against.

    Raises:
        ConfigError: If options are wrong, or the run to resume was another one.
        InputError: If the images do not have the tokenizer's shape, or do not suit a loss.
        DataError: If images are missing or damaged.
        CheckpointError: If weights cannot be read or state cannot be written.
        TrainingError: If training cannot go on.
    """
    if resume and isinstance(tokenizer, Mapping):
        recorded = recorded_recipe(output).get("tokenizer", {})
        tokenizer = keep_earlier_options("tokenizer", tokenizer, recorded)
    model = tokenizer if isinstance(tokenizer, ImageTokenizer) else build(tokenizer, seed)
    if init_from is not None:
        copy_weights(model, init_from)
    adversary = make_adversary(adversarial, model, config, seed)
    objective = Objective(model, losses, adversary)
    dataset = build_dataset(data, seed=seed)
    images = torch.stack([dataset[i]["images"] for i in range(min(NUM_SAMPLES, len(dataset)))])
    model.check_images(images)
    model.interior = dataset.interior
    console().print(dataset.report)
    sections = {"data": data, "train": config, "losses": losses, "adversarial": adversarial}
    recipe = {
        "tokenizer": dict(tokenizer) if isinstance(tokenizer, Mapping) else describe(model),
        **{name: s.model_dump(mode="json") for name, s in sections.items() if s is not None},
        "seed": seed,
        "output": str(output),
    }

    def before_step(_: nn.Module) -> dict[str, Tensor]:
        metrics = objective.before_step()
        model.before_step()
        return metrics

    def save_final(_: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)
        report = json.dumps(dataset.report.to_dict(), indent=1)
        (output / "data_report.json").write_text(report)

    hooks = Hooks(
        begin_step=objective.begin_step,
        before_step=before_step,
        after_step=lambda _, optimizers: model.after_step(optimizers),
        skip_step=lambda _: model.skip_step(),
        sample=lambda _, step, folder: save_samples(model, images, step, folder),
        save_final=save_final,
    )
    run = Run(output, seed, resume, recipe)
    phases = [] if adversary is None else [adversary.phase]
    return fit(model, dataset, objective, config, run, hooks=hooks, phases=phases)


def make_adversary(
    section: AdversarialConfig | None, model: ImageTokenizer, config: TrainConfig, seed: int
) -> Adversary | None:
    """Return what a recipe trains a tokenizer against.

    Raises:
        ConfigError: If the precision does not suit it.
    """
    if section is None:
        return None
    if section.adaptive and config.mixed_precision == "fp16":
        raise ConfigError(
            "adversarial.adaptive: the gradients it compares are not scaled and vanish in fp16; "
            "set train.mixed_precision=bf16, or adversarial.adaptive=false"
        )
    return Adversary(section, model, config.gradient_accumulation, seed)


def build(options: Mapping[str, Any], seed: int) -> ImageTokenizer:
    """Build a registered tokenizer with seeded weights, leaving the global random state alone."""
    rest = {key: value for key, value in options.items() if key != "name"}
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 3))
        return load_tokenizer(options["name"], **rest)


def describe(model: ImageTokenizer) -> dict[str, Any]:
    """Return the recipe section that builds a model."""
    names = [k for k, cls in registry.list_registered("tokenizer").items() if cls is type(model)]
    options = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    return {"name": names[0] if names else type(model).__name__} | options


def copy_weights(model: ImageTokenizer, source: Path | str) -> None:
    """Start from the weights of a trained tokenizer.

    Raises:
        CheckpointError: If it has other weights than this one.
    """
    try:
        model.load_state_dict(load_tokenizer(source).state_dict())
    except RuntimeError as error:
        lines = str(error).splitlines()
        detail = lines[1].strip() if len(lines) > 1 else lines[0]
        raise CheckpointError(
            f"cannot start from {source}: {detail}; it must have been built with the same options"
        ) from error


def save_samples(model: ImageTokenizer, images: Tensor, step: int, folder: Path) -> None:
    """Save originals over their reconstructions from tokens."""
    originals = images.to(next(model.parameters()).device)
    reconstructions = model.decode(model.encode(originals))
    grid = torch.cat([originals, reconstructions.to(originals.dtype)])
    save_grid(grid.cpu(), folder / f"step-{step:08d}.png", columns=len(images))
