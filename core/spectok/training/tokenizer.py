"""Training a tokenizer: what it adds to the loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectok.data import build_dataset
from spectok.errors import CheckpointError, ConfigError, SpectokError
from spectok.images import save_grid
from spectok.loading import load_tokenizer, load_trained
from spectok.messages import console
from spectok.places import home
from spectok.recipes.options import keep_earlier_options
from spectok.tokenizer import ImageTokenizer
from spectok.training.adversarial import Adversary
from spectok.training.batches import derive_seed
from spectok.training.card import describe_tokenizer, write_run_card
from spectok.training.contracts import Callbacks, FitResult, Resume, Run
from spectok.training.launch import check_machine
from spectok.training.loop import fit
from spectok.training.objective import Objective
from spectok.training.precision import settled_recipe
from spectok.training.recipe import TokenizerRecipe
from spectok.training.resume import check_resume, recorded_recipe
from spectok.training.sharding import refuse_for

NUM_SAMPLES = 8


def train_tokenizer(recipe: TokenizerRecipe, output: Path, *, resume: Resume = False) -> FitResult:
    """Train a tokenizer as a recipe says; works the same in one process and in many.

    Where the data adds a border to the images, the tokenizer's losses leave it out; a
    discriminator sees the whole image.

    The folder gets the trained model with its card in ``model/``, and beside it ``recipe.yaml``,
    ``data_report.json``, ``log.jsonl``, ``samples/`` (originals over reconstructions) and
    ``checkpoints/``.

    Args:
        recipe: A validated recipe.
        output: Folder of the run; takes the place of the recipe's ``output``.
        resume: True: continue from the newest checkpoint in the folder. ``"auto"``: continue, or
            begin where there is none.

    Raises:
        ConfigError: If options are wrong, or the run to resume was a different one.
        InputError: If the images do not have the tokenizer's shape, or do not suit a loss.
        DataError: If images are missing or damaged.
        CheckpointError: If weights cannot be read or state cannot be written, or there is no
            checkpoint to resume from.
        TrainingError: If training cannot go on.
    """
    refuse_for("tokenizers")
    output = Path(home(output))
    check_resume(output, resume)
    recorded = recorded_recipe(output) if resume else {}
    earlier = keep_earlier_options("tokenizer", recipe.tokenizer, recorded.get("tokenizer", {}))
    recipe = recipe.model_copy(update={"tokenizer": earlier})
    recipe = settled_recipe(recipe, output, resume)
    model = build(recipe.tokenizer, recipe.seed)
    if recipe.init_from is not None and not recorded:
        copy_weights(model, recipe.init_from)
    adversary = make_adversary(recipe, model)
    objective = Objective(model, recipe.losses, adversary)
    dataset = build_dataset(recipe.data, seed=recipe.seed)
    images = torch.stack([dataset[i]["images"] for i in range(min(NUM_SAMPLES, len(dataset)))])
    model.check_images(images)
    model.interior = dataset.interior
    console().print(dataset.report)
    objective.measure(dataset)
    batches = model.training_data(dataset, objective.needs_images)

    def before_step(_: nn.Module) -> dict[str, Tensor]:
        metrics = objective.before_step()
        model.before_step()
        return metrics

    def save_final(_: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)
        report = json.dumps(dataset.report.to_dict(), indent=1)
        (output / "data_report.json").write_text(report)
        subject = describe_tokenizer(model, folder, [recipe.tokenizer["name"]])
        write_run_card(folder, to_record(recipe), subject, recipe.data, dataset.report)

    callbacks = Callbacks(
        begin_step=objective.begin_step,
        before_step=before_step,
        after_step=lambda _, optimizers: model.after_step(optimizers),
        skip_step=lambda _: model.skip_step(),
        sample=lambda _, step, folder: save_samples(model, images, step, folder),
        save_final=save_final,
    )
    run = Run(output, recipe.seed, resume, to_record(recipe))
    phases = [] if adversary is None else [adversary.phase]
    return fit(model, batches, objective, recipe.train, run, callbacks=callbacks, phases=phases)


def to_record(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return a recipe as its run writes it down, without the sections it does not have."""
    sections = recipe.model_dump(mode="json", exclude={"seed", "output"})
    given = {name: section for name, section in sections.items() if section is not None}
    return given | {"seed": recipe.seed}


def make_adversary(recipe: TokenizerRecipe, model: ImageTokenizer) -> Adversary | None:
    """Return what a recipe trains its tokenizer against; None if it has no such section.

    Raises:
        ConfigError: If the precision does not suit it.
    """
    section = recipe.adversarial
    if section is None:
        return None
    if section.adaptive and recipe.train.mixed_precision == "fp16":
        raise ConfigError(
            "adversarial.adaptive: the gradients it compares are not scaled and vanish in fp16; "
            "set train.mixed_precision=bf16, or adversarial.adaptive=false"
        )
    return Adversary(section, model, recipe.train.gradient_accumulation, recipe.seed)


def build(options: Mapping[str, Any], seed: int) -> ImageTokenizer:
    """Build a registered tokenizer with seeded weights, leaving the global random state alone."""
    rest = {key: value for key, value in options.items() if key != "name"}
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 3))
        return load_tokenizer(options["name"], **rest)


def rehearse_tokenizer(recipe: TokenizerRecipe) -> ImageTokenizer:
    """Check all that can be checked of a tokenizer's training before something else is done first.

    Returns:
        The tokenizer, without memory for its weights.

    Raises:
        ConfigError: If options are wrong, or do not suit this machine.
        InputError: If the images do not have the tokenizer's shape, or do not suit a loss.
        DataError: If images are missing or damaged.
        CheckpointError: If weights that it needs are not on this machine.
    """
    check_machine(recipe.train)
    with torch.device("meta"):
        model = build(recipe.tokenizer, recipe.seed)
        adversary = make_adversary(recipe, model)
    Objective(model, recipe.losses, adversary)
    if recipe.init_from is not None:
        copy_weights(model, recipe.init_from)
    dataset = build_dataset(recipe.data, seed=recipe.seed)
    model.check_images(dataset[0]["images"][None])
    return model


def copy_weights(model: ImageTokenizer, source: Path | str) -> None:
    """Give a tokenizer the weights of a trained one.

    Args:
        model: The tokenizer that is about to be trained.
        source: Folder of a model or of a run, or a hub id.

    Raises:
        ConfigError: If the source is a registered key, which has no weights.
        CheckpointError: If its weights cannot be read or do not fit this tokenizer.
    """
    try:
        trained = load_trained(source)
    except SpectokError as error:
        kind = ConfigError if isinstance(error, ConfigError) else CheckpointError
        raise kind(f"init_from {source}: not a folder with a trained model: {error}") from error
    theirs, ours = trained.state_dict(), model.state_dict()
    differing = [
        name
        for name in sorted({*theirs, *ours})
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    ]
    if differing:
        shown = ", ".join(differing[:3]) + (" …" if len(differing) > 3 else "")
        raise CheckpointError(
            f"init_from: the weights of {source}, a {type(trained).__name__}, do not fit this "
            f"{type(model).__name__} ({len(differing)} differ: {shown}); give a model that was "
            f"built with the same options"
        )
    model.load_state_dict(theirs)


def save_samples(model: ImageTokenizer, images: Tensor, step: int, folder: Path) -> None:
    """Save originals over their reconstructions from tokens."""
    originals = images.to(next(model.parameters()).device)
    reconstructions = model.decode(model.encode(originals))
    grid = torch.cat([originals, reconstructions.to(originals.dtype)])
    save_grid(grid.cpu(), folder / f"step-{step:08d}.png", columns=len(images))
