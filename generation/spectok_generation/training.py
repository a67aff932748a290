"""Train a prior: get a tokenizer, get its tokens, fit the model.

tokenizer ── trained first, if given as a recipe ──> output/tokenizer/
CLIP      ── trained first, if given as a recipe ──> output/clip/
images    ── extract_tokens ──> output/tokens/
captions  ── encode_captions ──> output/captions/
tokens    ── fit ──> output/model/

A prior of latents needs no tokens: each batch of images is encoded during training.
"""

from __future__ import annotations

import math
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
from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.images import save_grid
from spectok.loading import load_trained
from spectok.messages import note, progress, say
from spectok.places import home
from spectok.plugins import registry
from spectok.processes import on_main
from spectok.recipes.files import RUN_RECIPE
from spectok.recipes.yaml12 import dump_yaml
from spectok.training import Callbacks, FitResult, Resume, Run, StepOutput, fit, train_tokenizer
from spectok.training.card import write_run_card
from spectok.training.launch import accelerated, joined
from spectok.training.lock import run_locked
from spectok.training.precision import settled_recipe
from spectok.training.resume import (
    check_recorded,
    check_resume,
    recorded_progress,
    without_consent,
)
from spectok.training.train_config import TrainConfig
from spectok.writing import write_text
from spectok_generation.card import describe_prior
from spectok_generation.conditions import Condition
from spectok_generation.diffusion.latents import measure_latents
from spectok_generation.diffusion.model import LDM
from spectok_generation.drawing import DRAWABLE, choose_labels, draw_batch
from spectok_generation.extraction import Extraction, extract_tokens
from spectok_generation.pairs import OWN_CLIP, OWN_TOKENIZER
from spectok_generation.prior_recipe import PriorRecipe, tokenizer_recipe
from spectok_generation.priors import Prior, create_prior
from spectok_generation.priors.orders import Annealing
from spectok_generation.records import tokenizer_record
from spectok_generation.rehearsal import rehearse
from spectok_generation.text.clip_recipe import clip_recipe_file, load_clip_recipe
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.encoder_loading import load_text_encoder
from spectok_generation.text.features import NO_CAPTIONS
from spectok_generation.tokens import TokenCache
from spectok_generation.training_set import (
    TrainingSet,
    absolute,
    fit_data,
    latent_training_set,
    token_training_set,
    with_text,
)

OWN_TOKENS, OWN_CAPTIONS = "tokens", "captions"
NUM_SAMPLES = 16


def train_prior(recipe: PriorRecipe, output: Path, *, resume: Resume = False) -> FitResult:
    """Train a prior from a recipe, in one process or in many.

    Writes ``model/`` (the prior with its card, and a record of its tokenizer), ``recipe.yaml``,
    ``log.jsonl``,
    ``checkpoints/``, ``samples/``, and what the prior needed first: ``tokenizer/`` and ``clip/``
    (complete runs), ``tokens/`` and ``captions/``.

    Args:
        recipe: A validated recipe.
        output: Folder of the run.
        resume: True: go on with the run in the folder, from its newest checkpoint or from what was
            made first. ``"auto"``: go on, or begin where there is nothing.

    Raises:
        ConfigError: If the folder holds a finished run or one of another recipe, or parts of the
            recipe do not fit.
        CheckpointError: If the tokens were not made by the tokenizer.
    """
    output = Path(home(output))
    check_unfinished(output, resume)
    if resume is True and has_begun(output):
        resume = "auto"
    check_resume(output, resume)
    recipe = settled_recipe(recipe, output, resume)
    check_recorded(output, recipe.model_dump(mode="json", exclude={"output"}))
    given = rehearse(recipe)
    with joined(recipe.train), run_locked(output):
        on_main(lambda: note_recipe(recipe, output))
        path = prepare_tokenizer(recipe, output)
        encoder = given or prepare_text(recipe, output)
        return fit_prior(recipe, output, resume, path, encoder)


def note_recipe(recipe: PriorRecipe, output: Path) -> None:
    """Write down the recipe of a run that begins, so that it can go on by it from now on."""
    if not os.path.lexists(output / RUN_RECIPE):
        record = without_consent(recipe.model_dump(mode="json", exclude={"output"}))
        write_text(output / RUN_RECIPE, dump_yaml(record), CheckpointError)


def fit_prior(
    recipe: PriorRecipe, output: Path, resume: Resume, path: str | None, encoder: TextEncoder | None
) -> FitResult:
    """Train the prior itself.

    Args:
        recipe: A validated recipe.
        output: Folder of the run.
        resume: See :func:`train_prior`.
        path: Where the trained tokenizer is.
        encoder: The trained text encoder, for a prior that reads text.
    """
    with accelerated(recipe.train, output) as accelerator:
        tokenizer = None
        if path is not None:
            inside = recipe.tokenizer_subfolder
            tokenizer = load_trained(path, subfolder=inside).to(accelerator.device)
        if tokenizer is not None and issubclass(registry.get_prior(recipe.prior["name"]), LDM):
            training_set = latent_training_set(recipe, tokenizer, path)
        else:
            training_set = token_training_set(prepare_tokens(recipe, output, tokenizer, path))
        if encoder is not None:
            training_set = with_text(
                training_set, encoder.to(accelerator.device), output / OWN_CAPTIONS
            )
        torch.manual_seed(recipe.seed)
        prior = build_prior(recipe, training_set)
        check_orders(prior, output, recipe.train)
        if isinstance(prior, LDM) and tokenizer is not None:
            prior.set_statistics(*measure_latents(tokenizer, training_set.dataset))
        record = recipe.model_dump(mode="json", exclude={"output"})

        def save_final(model: nn.Module, folder: Path) -> None:
            trained = cast(Prior, model)
            trained.save_pretrained(folder)
            report = getattr(training_set.dataset, "report", None)  # of images, not of tokens
            write_run_card(folder, record, describe_prior(trained, folder), recipe.data, report)

        callbacks = Callbacks(
            begin_step=lambda step: prior.begin_step(step, recipe.train.steps),
            save_final=save_final,
        )
        if tokenizer is not None and isinstance(prior, DRAWABLE):
            callbacks.sample = sampler(tokenizer, training_set, recipe.seed)
        models = {"tokenizer": training_set.tokenizer, "text.encoder": training_set.text or {}}
        sources = {name: m["fingerprint"] for name, m in models.items() if m.get("fingerprint")}
        run = Run(output, recipe.seed, resume, record, sources)
        losses = make_losses(training_set, prior.condition_name)
        data, config = training_set.dataset, recipe.train
        return fit(prior, data, losses, config, run, callbacks=callbacks, can_shard=True)


def check_orders(prior: nn.Module, output: Path, config: TrainConfig) -> None:
    """Check that other steps do not bring random orders back unasked, like a learning rate.

    Args:
        prior: To be trained; most have no random orders.
        output: Folder of the run, which may go on.
        config: How it wants to go on.

    Raises:
        ConfigError: If the share of images in random orders would jump, and ``config.reschedule``
            is off.
    """
    annealing: Annealing | None = getattr(prior, "annealing", None)
    if annealing is None or (progress := recorded_progress(output)) is None:
        return
    step, steps = progress
    before, after = annealing.share(step / steps), annealing.share(step / config.steps)
    if math.isclose(before, after, abs_tol=1e-6):
        return
    jump = f"from {before:.3g} to {after:.3g} at step {step + 1}"
    if not config.reschedule:
        raise ConfigError(
            f"train.steps: with {config.steps} steps instead of {steps} the share of images in "
            f"random orders (prior.order) goes {jump}; give train.reschedule=true if that is "
            f"meant, or the steps of before"
        )
    note(f"the share of images in random orders goes {jump}")


def check_unfinished(output: Path, resume: Resume) -> None:
    """Check that training would not overwrite a finished run.

    Raises:
        ConfigError: If the folder holds a trained prior and ``resume`` is off.
    """
    if (output / "model" / "config.json").is_file() and not resume:
        raise ConfigError(
            f"{output} holds a finished run; give another --output, or --resume to train it "
            f"further (with more train.steps)"
        )


def has_begun(output: Path) -> bool:
    """Return whether a run has made anything of what its prior needs first."""
    parts = (OWN_TOKENIZER.parent, OWN_CLIP.parent, Path(OWN_TOKENS), Path(OWN_CAPTIONS))
    return any((output / part).exists() for part in parts)


def prepare_tokenizer(recipe: PriorRecipe, output: Path) -> str | None:
    """Return the path of the trained tokenizer; one given as a recipe is trained inside the run.

    If this run already trained or began to train that tokenizer, its training is resumed.
    """
    if recipe.tokenizer is None:
        return None
    own = tokenizer_recipe(recipe.tokenizer)
    if own is None:
        return recipe.tokenizer
    folder = output / OWN_TOKENIZER
    train_tokenizer(own, folder.parent, resume="auto")
    return str(folder)


def prepare_text(recipe: PriorRecipe, output: Path) -> TextEncoder | None:
    """Return the text encoder; a CLIP given as a recipe is trained inside the run."""
    if recipe.text is None:
        return None
    own = clip_recipe_file(recipe.text.encoder)
    if own is None:
        return load_text_encoder(recipe.text.encoder, recipe.text.pretrained)
    from spectok_generation.text.clip import train_clip

    folder = output / OWN_CLIP
    train_clip(load_clip_recipe(str(own)), folder.parent, resume="auto")
    return load_text_encoder(str(folder))


def prepare_tokens(
    recipe: PriorRecipe, output: Path, tokenizer: ImageTokenizer | None, path: str | None
) -> TokenCache:
    """Open the tokens given in a recipe, or extract them into the run.

    Raises:
        CheckpointError: If they were not made by the tokenizer of the recipe.
    """
    if recipe.tokens is not None:
        cache = TokenCache(recipe.tokens, recipe.seed)
        if tokenizer is not None:
            cache.check_tokenizer(tokenizer_record(tokenizer, path, recipe.tokenizer_subfolder))
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
        subfolder=recipe.tokenizer_subfolder,
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
    subfolder: str | None = None,
    seed: int = 0,
    needs_captions: bool = False,
) -> TokenCache:
    """Extract the tokens of a ``data:`` section, at the image size of the tokenizer.

    Args:
        tokenizer: A trained tokenizer on the device to run on.
        data: The images. They are augmented only if more than one copy of each is taken.
        directory: Directory of the cache.
        how: Batch size and copies.
        path: Where the tokenizer was loaded from; a folder is stored as an absolute path.
        subfolder: Folder inside it, if one was given.
        seed: Seed of the augmentation.
        needs_captions: Whether the images must have captions.

    Raises:
        DataError: If captions are needed but missing.
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
        origin = {"path": absolute(path), "subfolder": subfolder}
        return extract_tokens(tokenizer, dataset, directory, how, **origin, on_images=advance)


def build_prior(recipe: PriorRecipe, training_set: TrainingSet) -> Prior:
    """Build the prior of a recipe for a training set."""
    options = {key: value for key, value in recipe.prior.items() if key != "name"}
    by_class = recipe.class_conditional and training_set.text is None
    return create_prior(
        recipe.prior["name"],
        training_set.token_spec,
        num_classes=training_set.num_classes if by_class else 0,
        tokenizer=training_set.tokenizer,
        text=training_set.text,
        **options,
    )


def make_losses(
    training_set: TrainingSet, condition_name: str | None
) -> Callable[[nn.Module, dict[str, Any]], StepOutput]:
    """Return ``(model, batch) -> losses``, conditioned on classes, texts or nothing."""

    def compute_losses(model: nn.Module, batch: dict[str, Any]) -> StepOutput:
        output = model(training_set.inputs(batch), training_set.condition(batch, condition_name))
        return StepOutput(output.losses, output.metrics)

    return compute_losses


def sampler(
    tokenizer: ImageTokenizer, training_set: TrainingSet, seed: int
) -> Callable[[nn.Module, int, Path], None]:
    """Return a callback that writes a grid of images, drawn with fixed random numbers.

    The images show all classes in turn, or the first captions.
    """

    def sample(model: nn.Module, step: int, folder: Path) -> None:
        prior = cast(Prior, model)
        if training_set.text is None:
            condition: Condition | None = choose_labels(prior, NUM_SAMPLES)
        else:
            rows = [row % len(training_set.dataset) for row in range(NUM_SAMPLES)]
            condition = training_set.dataset.features.rows(rows)
        images = draw_batch(prior, tokenizer, range(NUM_SAMPLES), condition, seed=seed)
        save_grid(images, folder / f"step-{step:08d}.png")

    return sample
