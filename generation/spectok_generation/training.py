"""Train a prior: get a tokenizer, get its tokens, fit the model.

tokenizer ── trained first, if a recipe names it ──> output/tokenizer/
images    ── extract_tokens ──> output/tokens/
tokens    ── fit ──> output/model/
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from spectok import ImageTokenizer
from spectok.cli.console import progress, say
from spectok.data import DataConfig, build_dataset
from spectok.distributed import world
from spectok.errors import ConfigError
from spectok.images import save_grid
from spectok.training import FitResult, Hooks, Run, StepOutput, fit, train_tokenizer
from spectok.training.launch import accelerated
from spectok_generation.extraction import Extraction, extract_tokens
from spectok_generation.generate import OWN_TOKENIZER, choose_labels, decode_tokens, load_trained
from spectok_generation.priors import AutoregressivePrior, Prior, create_prior
from spectok_generation.recipe import PriorRecipe, tokenizer_recipe
from spectok_generation.records import tokenizer_record
from spectok_generation.sampling import sample_batch
from spectok_generation.tokens import TokenCache

OWN_TOKENS = "tokens"
NUM_SAMPLES = 16


def train_prior(recipe: PriorRecipe, output: Path, *, resume: bool = False) -> FitResult:
    """Train a prior as a recipe says; works alike in one process and in many.

    The folder gets ``model/`` (the prior, which remembers its tokenizer), ``recipe.yaml``,
    ``log.jsonl``, ``checkpoints/``, ``samples/``, and whatever had to be made first:
    ``tokenizer/`` (a run of its own) and ``tokens/``.

    Args:
        recipe: A validated recipe.
        output: Folder of the run.
        resume: Go on from the newest checkpoint, if there is one.

    Raises:
        ConfigError: If the folder holds a finished run, or parts of the recipe do not fit.
        CheckpointError: If given tokens were not made by the given tokenizer.
    """
    check_unfinished(output, resume)
    path = prepare_tokenizer(recipe, output)
    with accelerated(recipe.train, output) as accelerator:
        tokenizer = None
        if path is not None:
            tokenizer = load_trained(path).to(accelerator.device)
        cache = prepare_tokens(recipe, output, tokenizer, path)
        torch.manual_seed(recipe.seed)
        prior = build_prior(recipe, cache)
        compute_losses = conditional_losses if prior.num_classes else unconditional_losses
        hooks = Hooks(save_final=lambda model, folder: model.save_pretrained(folder))  # type: ignore[operator]
        if tokenizer is not None and isinstance(prior, AutoregressivePrior):
            hooks.sample = sampler(tokenizer, recipe.seed)
        run = Run(output, recipe.seed, resume, recipe.model_dump(mode="json"))
        return fit(prior, cache, compute_losses, recipe.train, run, hooks=hooks)


def check_unfinished(output: Path, resume: bool) -> None:
    """Refuse to overwrite a finished run.

    Raises:
        ConfigError: If the folder holds a trained prior and ``resume`` is off.
    """
    if (output / "model" / "config.json").is_file() and not resume:
        raise ConfigError(
            f"{output} holds a finished run; give another --output, or --resume to train it "
            f"further (with more train.steps)"
        )


def prepare_tokenizer(recipe: PriorRecipe, output: Path) -> str | None:
    """Return where the trained tokenizer is, training it inside the run if a recipe names it.

    A tokenizer that an earlier start of this run trained, or began to, is taken up again.
    """
    if recipe.tokenizer is None:
        return None
    own = tokenizer_recipe(recipe.tokenizer)
    if own is None:
        return recipe.tokenizer
    folder = output / OWN_TOKENIZER
    train_tokenizer(
        own.tokenizer,
        own.data,
        own.train,
        folder.parent,
        seed=own.seed,
        resume=True,
        losses=own.losses,
        adversarial=own.adversarial,
    )
    return str(folder)


def prepare_tokens(
    recipe: PriorRecipe, output: Path, tokenizer: ImageTokenizer | None, path: str | None
) -> TokenCache:
    """Open the tokens that a recipe names, or extract them into the run.

    Raises:
        CheckpointError: If they were made by another tokenizer than the recipe's.
    """
    if recipe.tokens is not None:
        cache = TokenCache(recipe.tokens)
        if tokenizer is not None:
            cache.check_tokenizer(tokenizer_record(tokenizer, path))
        return cache
    if tokenizer is None:
        raise ConfigError("tokenizer: missing; give a trained tokenizer, or extracted tokens")
    how = Extraction(recipe.copies, batch_size=recipe.train.batch_size)
    return extract_data(
        tokenizer, recipe.data, output / OWN_TOKENS, how, path=path, seed=recipe.seed
    )


def extract_data(
    tokenizer: ImageTokenizer,
    data: DataConfig,
    directory: str | os.PathLike[str],
    how: Extraction,
    *,
    path: str | None = None,
    seed: int = 0,
) -> TokenCache:
    """Extract the tokens of a ``data:`` section, at the size the tokenizer takes.

    Args:
        tokenizer: A trained tokenizer, on the device to run on.
        data: The images. Augmentation applies only where more than one copy of each is taken.
        directory: Where the cache goes.
        how: Batch size and copies.
        path: Where the tokenizer was loaded from; a folder is remembered as an absolute path.
        seed: Seed of the augmentation.
    """
    channels, height, _ = tokenizer.image_shape
    fitting = {"image_size": data.image_size or height, "channels": data.channels or channels}
    data = data.model_copy(update=fitting)
    augmented = how.copies > 1
    dataset = build_dataset(data, seed=seed, train=augmented)
    if augmented:
        flip, shift = data.horizontal_flip, data.max_shift
        how = replace(how, augmentation=f"flip {flip}, shift {shift}, seed {seed}")
    if path is not None and Path(path).is_dir():
        path = str(Path(path).resolve())
    say(str(dataset.report))
    with progress("extracting tokens", len(dataset) * how.copies // world()[1]) as advance:
        return extract_tokens(tokenizer, dataset, directory, how, path=path, on_images=advance)


def build_prior(recipe: PriorRecipe, cache: TokenCache) -> Prior:
    """Build the prior of a recipe for the tokens of a cache."""
    options = {key: value for key, value in recipe.prior.items() if key != "name"}
    record = cache.header.tokenizer | {"class_names": cache.header.class_names}
    return create_prior(
        recipe.prior["name"],
        cache.token_spec,
        num_classes=cache.num_classes if recipe.class_conditional else 0,
        tokenizer=record,
        **options,
    )


def unconditional_losses(model: nn.Module, batch: dict[str, Any]) -> StepOutput:
    """Return the losses of a batch of tokens."""
    output = model(batch["indices"])
    return StepOutput(output.losses, output.metrics)


def conditional_losses(model: nn.Module, batch: dict[str, Any]) -> StepOutput:
    """Return the losses of a batch of tokens given their classes."""
    output = model(batch["indices"], batch["label"])
    return StepOutput(output.losses, output.metrics)


def sampler(tokenizer: ImageTokenizer, seed: int) -> Callable[[nn.Module, int, Path], None]:
    """Return a hook that writes a grid of images drawn from the prior, always the same numbers."""

    def sample(model: nn.Module, step: int, folder: Path) -> None:
        prior = cast(AutoregressivePrior, model)
        labels = choose_labels(prior, NUM_SAMPLES)
        indices = sample_batch(prior, range(NUM_SAMPLES), labels, seed=seed)
        save_grid(decode_tokens(tokenizer, indices), folder / f"step-{step:08d}.png")

    return sample
