"""Before the first step of anything: build every part of a prior's run, and open every file.

A run may train a tokenizer and a CLIP for hours before its prior begins. So all three are built
first, without memory for their weights, from the data that they will see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spectok import ImageTokenizer
from spectok.data import build_dataset
from spectok.errors import ConfigError, DataError, SpectokError
from spectok.loading import load_trained
from spectok.plugins import registry
from spectok.training.launch import check_machine
from spectok.training.tokenizer import rehearse_tokenizer
from spectok_generation.diffusion.model import LDM
from spectok_generation.extraction import check_image_shape
from spectok_generation.prior_recipe import PriorRecipe, tokenizer_recipe
from spectok_generation.priors import Prior, create_prior
from spectok_generation.priors.factory import check_text_is_given
from spectok_generation.text.clip_recipe import clip_recipe_file, load_clip_recipe
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.encoder_loading import load_text_encoder
from spectok_generation.text.features import NO_CAPTIONS
from spectok_generation.tokens import TokenCache
from spectok_generation.training_set import check_latents, fit_data, layout_record


def rehearse(recipe: PriorRecipe) -> TextEncoder | None:
    """Check everything that a prior's run needs, before any of it is trained or extracted.

    Args:
        recipe: A validated recipe.

    Returns:
        The text encoder, if the recipe gives a trained one.

    Raises:
        ConfigError: If parts of the recipe do not fit one another or this machine.
        CheckpointError: If a trained part cannot be read.
        DataError: If the images, their captions or the tokens are missing or damaged.
    """
    check_machine(recipe.train)
    check_text_is_given(recipe.prior["name"], recipe.text is not None)
    tokenizer = _tokenizer(recipe)
    encoder, text = _text(recipe)
    if issubclass(registry.get_prior(recipe.prior["name"]), LDM):
        check_latents(recipe, tokenizer is not None)
    if recipe.tokens is not None:
        source: Any = TokenCache(recipe.tokens)
        spec, has_captions = source.token_spec, bool(source.captions)
        record = source.header.tokenizer
    elif tokenizer is not None:
        source = build_dataset(fit_data(recipe.data, tokenizer), train=False)
        check_image_shape(source, tokenizer)
        spec, has_captions = tokenizer.token_spec, source.has_captions
        record = layout_record(tokenizer)
    else:
        raise ConfigError("tokenizer: missing; give a trained tokenizer, or extracted tokens")
    if text is not None and not has_captions:
        raise DataError(NO_CAPTIONS)
    by_class = recipe.class_conditional and text is None
    options = {key: value for key, value in recipe.prior.items() if key != "name"}
    build_prior_on(
        "meta",
        recipe.prior["name"],
        token_spec=spec,
        num_classes=(source.num_classes or 0) if by_class else 0,
        tokenizer=record,
        text=text,
        **options,
    )
    return encoder


def build_prior_on(device: str, name: str, **options: Any) -> Prior:
    """Build a prior on a device; on ``"meta"``, without memory for its weights.

    Raises:
        ConfigError: If it cannot be built, whatever the reason.
    """
    try:
        with torch.device(device):
            return create_prior(name, **options)
    except SpectokError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"prior: {name} cannot be built with these options: {reason}") from error


def _tokenizer(recipe: PriorRecipe) -> ImageTokenizer | None:
    """Return the tokenizer; one that is still to be trained has no weights."""
    if recipe.tokenizer is None:
        return None
    own = tokenizer_recipe(recipe.tokenizer)
    if own is not None:
        return rehearse_tokenizer(own)
    return load_trained(recipe.tokenizer, subfolder=recipe.tokenizer_subfolder)


def _text(recipe: PriorRecipe) -> tuple[TextEncoder | None, dict[str, Any] | None]:
    """Return the text encoder, if it is trained already, and the record of either kind."""
    if recipe.text is None:
        return None, None
    own: Path | None = clip_recipe_file(recipe.text.encoder)
    if own is None:
        encoder = load_text_encoder(recipe.text.encoder, recipe.text.pretrained)
        return encoder, encoder.record
    from spectok_generation.text.clip import rehearse_clip

    return None, {"width": rehearse_clip(load_clip_recipe(str(own)))}
