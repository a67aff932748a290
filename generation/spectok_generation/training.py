"""Train a prior: get a tokenizer, get its tokens, fit the model.

tokenizer ── trained first, if a recipe names it ──> output/tokenizer/
CLIP      ── trained first, if a recipe names it ──> output/clip/
images    ── extract_tokens ──> output/tokens/
captions  ── encode_captions ──> output/captions/
tokens    ── fit ──> output/model/

A prior of latents needs no tokens: each batch of images is encoded when its turn comes.
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
from spectok.data import DataConfig, build_dataset
from spectok.distributed import world
from spectok.errors import ConfigError, DataError
from spectok.images import save_grid
from spectok.loading import load_trained
from spectok.messages import progress, say
from spectok.plugins import registry
from spectok.training import Callbacks, FitResult, Run, StepOutput, fit, train_tokenizer
from spectok.training.launch import accelerated, check_machine
from spectok_generation.conditions import Condition
from spectok_generation.diffusion.latents import measure_latents
from spectok_generation.diffusion.model import LDM
from spectok_generation.examples import (
    Examples,
    absolute,
    fit_data,
    latent_examples,
    token_examples,
    with_text,
)
from spectok_generation.extraction import Extraction, extract_tokens
from spectok_generation.generate import DRAWABLE, OWN_CLIP, OWN_TOKENIZER, choose_labels, draw_batch
from spectok_generation.priors import Prior, create_prior
from spectok_generation.priors.loading import check_text_is_given
from spectok_generation.recipe import PriorRecipe, tokenizer_recipe
from spectok_generation.records import tokenizer_record
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.features import NO_CAPTIONS
from spectok_generation.text.loading import load_text_encoder
from spectok_generation.text.recipe import clip_recipe_file, load_clip_recipe
from spectok_generation.tokens import TokenCache

OWN_TOKENS, OWN_CAPTIONS = "tokens", "captions"
NUM_SAMPLES = 16


def train_prior(recipe: PriorRecipe, output: Path, *, resume: bool = False) -> FitResult:
    """Train a prior as a recipe says; works alike in one process and in many.

    The folder gets ``model/`` (the prior, which remembers its tokenizer), ``recipe.yaml``,
    ``log.jsonl``, ``checkpoints/``, ``samples/``, and whatever had to be made first:
    ``tokenizer/`` and ``clip/`` (runs of their own), ``tokens/`` and ``captions/``.

    Args:
        recipe: A validated recipe.
        output: Folder of the run.
        resume: Go on from the newest checkpoint, if there is one.

    Raises:
        ConfigError: If the folder holds a finished run, or parts of the recipe do not fit.
        CheckpointError: If given tokens were not made by the given tokenizer.
    """
    check_unfinished(output, resume)
    check_machine(recipe.train)  # before a tokenizer is trained
    check_text_is_given(recipe.prior["name"], recipe.text is not None)
    path = prepare_tokenizer(recipe, output)
    encoder = prepare_text(recipe, output)
    with accelerated(recipe.train, output) as accelerator:
        tokenizer = None
        if path is not None:
            tokenizer = load_trained(path).to(accelerator.device)
        if issubclass(registry.get_prior(recipe.prior["name"]), LDM):
            examples = latent_examples(recipe, tokenizer, path)
        else:
            examples = token_examples(prepare_tokens(recipe, output, tokenizer, path))
        if encoder is not None:
            examples = with_text(examples, encoder.to(accelerator.device), output / OWN_CAPTIONS)
        torch.manual_seed(recipe.seed)
        prior = build_prior(recipe, examples)
        if isinstance(prior, LDM) and tokenizer is not None:
            prior.set_statistics(*measure_latents(tokenizer, examples.dataset))
        callbacks = Callbacks(save_final=lambda model, folder: model.save_pretrained(folder))  # type: ignore[operator]
        if tokenizer is not None and isinstance(prior, DRAWABLE):
            callbacks.sample = sampler(tokenizer, examples, recipe.seed)
        run = Run(output, recipe.seed, resume, recipe.model_dump(mode="json"))
        losses = make_losses(examples, prior.condition_name)
        return fit(prior, examples.dataset, losses, recipe.train, run, callbacks=callbacks)


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
    train_tokenizer(own, folder.parent, resume=True)
    return str(folder)


def prepare_text(recipe: PriorRecipe, output: Path) -> TextEncoder | None:
    """Return the text encoder of a recipe, fitting a CLIP inside the run if a recipe names it."""
    if recipe.text is None:
        return None
    own = clip_recipe_file(recipe.text.encoder)
    if own is None:
        return load_text_encoder(recipe.text.encoder, recipe.text.pretrained)
    from spectok_generation.text.clip import train_clip

    folder = output / OWN_CLIP
    train_clip(load_clip_recipe(str(own)), folder.parent, resume=True)
    return load_text_encoder(str(folder))


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
        tokenizer,
        recipe.data,
        output / OWN_TOKENS,
        how,
        path=path,
        seed=recipe.seed,
        needs_captions=recipe.text is not None,
    )


def extract_data(
    tokenizer: ImageTokenizer,
    data: DataConfig,
    directory: str | os.PathLike[str],
    how: Extraction,
    *,
    path: str | None = None,
    seed: int = 0,
    needs_captions: bool = False,
) -> TokenCache:
    """Extract the tokens of a ``data:`` section, at the size the tokenizer takes.

    Args:
        tokenizer: A trained tokenizer, on the device to run on.
        data: The images. Augmentation applies only where more than one copy of each is taken.
        directory: Where the cache goes.
        how: Batch size and copies.
        path: Where the tokenizer was loaded from; a folder is remembered as an absolute path.
        seed: Seed of the augmentation.
        needs_captions: Refuse images without captions.

    Raises:
        DataError: If captions are needed and there are none.
    """
    data = fit_data(data, tokenizer)
    augmented = how.copies > 1
    dataset = build_dataset(data, seed=seed, train=augmented)
    if needs_captions and not dataset.has_captions:
        raise DataError(NO_CAPTIONS)
    if augmented:
        flip, shift = data.horizontal_flip, data.max_shift
        how = replace(how, augmentation=f"flip {flip}, shift {shift}, seed {seed}")
    say(str(dataset.report))
    with progress("extracting tokens", len(dataset) * how.copies // world()[1]) as advance:
        path = absolute(path)
        return extract_tokens(tokenizer, dataset, directory, how, path=path, on_images=advance)


def build_prior(recipe: PriorRecipe, examples: Examples) -> Prior:
    """Build the prior of a recipe for what it is trained on."""
    options = {key: value for key, value in recipe.prior.items() if key != "name"}
    by_class = recipe.class_conditional and examples.text is None
    return create_prior(
        recipe.prior["name"],
        examples.token_spec,
        num_classes=examples.num_classes if by_class else 0,
        tokenizer=examples.tokenizer,
        text=examples.text,
        **options,
    )


def make_losses(
    examples: Examples, condition_name: str | None
) -> Callable[[nn.Module, dict[str, Any]], StepOutput]:
    """Return ``(model, batch) -> losses``, given classes, texts or nothing."""

    def compute_losses(model: nn.Module, batch: dict[str, Any]) -> StepOutput:
        output = model(examples.inputs(batch), examples.condition(batch, condition_name))
        return StepOutput(output.losses, output.metrics)

    return compute_losses


def sampler(
    tokenizer: ImageTokenizer, examples: Examples, seed: int
) -> Callable[[nn.Module, int, Path], None]:
    """Return a callback that writes a grid of images drawn from the prior, always the same numbers.

    They are of all classes in turn, or of the first captions.
    """

    def sample(model: nn.Module, step: int, folder: Path) -> None:
        prior = cast(Prior, model)
        if examples.text is None:
            condition: Condition | None = choose_labels(prior, NUM_SAMPLES)
        else:
            rows = [row % len(examples.dataset) for row in range(NUM_SAMPLES)]
            condition = examples.dataset.features.rows(rows)
        images = draw_batch(prior, tokenizer, range(NUM_SAMPLES), condition, seed=seed)
        save_grid(images, folder / f"step-{step:08d}.png")

    return sample
