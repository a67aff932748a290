"""What is measured when the training of a prior is planned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import nn

from spectok import ImageTokenizer, TokenSpec
from spectok.data.own import OwnData
from spectok.errors import ConfigError
from spectok.loading import load_trained
from spectok.planning import Stored, Subject
from spectok.plugins import registry
from spectok.training import Callbacks
from spectok.training.tokenizer import build
from spectok_generation.conditions import TextFeatures
from spectok_generation.diffusion.latents import encode_latents
from spectok_generation.diffusion.model import LDM
from spectok_generation.prior_recipe import PriorRecipe, tokenizer_recipe
from spectok_generation.priors.factory import check_text_is_given
from spectok_generation.rehearsal import build_prior_on
from spectok_generation.text.clip import model_config
from spectok_generation.text.clip_recipe import clip_recipe_file, load_clip_recipe
from spectok_generation.text.encoder_loading import load_text_encoder, model_folder
from spectok_generation.tokens import TokenCache, index_width
from spectok_generation.training import make_losses
from spectok_generation.training_set import TrainingSet, layout_record


@dataclass(frozen=True)
class Reader:
    """A text encoder, as far as a plan needs it.

    Args:
        model: Its network, without values.
        width: Length of its features.
        length: Tokens of the longest text.
    """

    model: nn.Module
    width: int
    length: int

    @property
    def record(self) -> dict[str, Any]:
        """What a prior is built from."""
        return {"width": self.width, "pools_last_token": True}


def prior_subject(recipe: PriorRecipe, device: str = "meta") -> tuple[Subject, Stored]:
    """Return the training of a prior without its data, and what lies on disk for each image.

    Texts are taken to fill all tokens of their encoder.

    Args:
        recipe: A validated recipe.
        device: Where untrained models are built.

    Raises:
        ConfigError: If parts of the recipe do not fit one another.
    """
    name = recipe.prior["name"]
    check_text_is_given(name, recipe.text is not None)
    tokenizer = _tokenizer(recipe, device)
    spec, record, classes = _layout(recipe, tokenizer)
    reader = _reader(recipe, device)
    options = {key: value for key, value in recipe.prior.items() if key != "name"}
    text = None if reader is None else reader.record
    prior = build_prior_on(
        device,
        name,
        token_spec=spec,
        num_classes=classes if recipe.class_conditional and reader is None else 0,
        tokenizer=record,
        text=text,
        **options,
    )
    size = recipe.train.batch_size
    batch: dict[str, Any] = {"label": torch.zeros(size, dtype=torch.int64)}
    if reader is not None:
        features = torch.zeros(size, reader.length, reader.width)
        mask = torch.ones(size, reader.length, dtype=torch.bool)
        batch["text"] = TextFeatures(features, mask)
    learns_latents = isinstance(prior, LDM)
    if learns_latents and tokenizer is None:
        raise ConfigError(f"tokenizer: missing; {name} learns the latents of one (--tokenizer)")
    if learns_latents:
        batch["images"] = torch.zeros(size, *cast(ImageTokenizer, tokenizer).image_shape)
        cast(nn.Module, tokenizer).eval()
    else:
        batch["indices"] = torch.zeros(size, spec.num_tokens, dtype=torch.int64)

    def inputs(batch: dict[str, Any]) -> torch.Tensor:
        if learns_latents:
            return encode_latents(cast(ImageTokenizer, tokenizer), batch["images"])
        return batch["indices"]

    training_set = TrainingSet(None, inputs, spec, classes, record, text=text)
    frozen: list[nn.Module] = [] if tokenizer is None else [tokenizer]
    frozen += [] if reader is None else [reader.model]
    losses = make_losses(training_set, prior.condition_name)
    row = (
        0 if learns_latents else recipe.copies * math.ceil(spec.num_tokens * index_width(spec) / 8)
    )
    pixels = 0 if tokenizer is None else math.prod(tokenizer.image_shape)
    stored = Stored(pixels) if learns_latents else Stored(pixels, row, spec.num_tokens)
    return Subject(prior, losses, batch, Callbacks(), frozen=frozen), stored


def _tokenizer(recipe: PriorRecipe, device: str) -> ImageTokenizer | None:
    if recipe.tokenizer is None:
        return None
    own = tokenizer_recipe(recipe.tokenizer)
    if own is None:
        return load_trained(recipe.tokenizer, subfolder=recipe.tokenizer_subfolder)
    with torch.device(device):
        return build(own.tokenizer, own.seed)


def _layout(
    recipe: PriorRecipe, tokenizer: ImageTokenizer | None
) -> tuple[TokenSpec, dict[str, Any], int]:
    """Return the layout of the tokens, the tokenizer's record and the number of classes."""
    if recipe.tokens is not None:
        cache = TokenCache(recipe.tokens)
        return cache.token_spec, cache.header.tokenizer, cache.num_classes
    if tokenizer is None:
        raise ConfigError("tokenizer: missing; give a trained tokenizer, or extracted tokens")
    source = registry.get_dataset(recipe.data.name)
    card = None if isinstance(source, OwnData) else source.describe()
    classes = getattr(card, "num_classes", None) or 0
    return tokenizer.token_spec, layout_record(tokenizer), classes


def _reader(recipe: PriorRecipe, device: str) -> Reader | None:
    """Return the text encoder of a recipe; its weights need not be on this machine."""
    if recipe.text is None:
        return None
    name, own = recipe.text.encoder, clip_recipe_file(recipe.text.encoder)
    if own is None and model_folder(name) is not None:
        encoder = load_text_encoder(name, recipe.text.pretrained)
        return Reader(encoder, encoder.width, encoder.context_length)
    if own is not None:
        clip = load_clip_recipe(str(own)).clip
        config = model_config(clip, (3, 64, 64))
    else:
        config = open_clip.get_model_config(name) or {}
    if "embed_dim" not in config or "text_cfg" not in config:
        raise ConfigError(f"text.encoder: {name!r} is neither a folder nor a model of open_clip")
    text = open_clip.CLIPTextCfg(
        **{k: v for k, v in config["text_cfg"].items() if k in vars(open_clip.CLIPTextCfg())}
    )
    with torch.device(device):
        model = TextTransformer(
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            width=text.width,
            heads=text.heads,
            layers=text.layers,
            output_dim=config["embed_dim"],
        )
    return Reader(model, config["embed_dim"], text.context_length)
