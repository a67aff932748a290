"""The models of the playground: which there are, and loading one when it is chosen."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spectok import ImageTokenizer
from spectok.data import DataConfig, build_dataset
from spectok.data.photos import photographs
from spectok.errors import ConfigError
from spectok.images import to_pil
from spectok.loading import check_trained, load_trained, model_folder
from spectok.plugins import registry
from spectok_generation.folders import draws, holds_prior, prior_folder
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.text.encoder import TextEncoder

NUM_DIGITS = 12
KEPT = 2
"""Models that stay in memory; a further one takes the place of the one used longest ago."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model to play with.

    Args:
        name: As it was given: a name, a folder or a hub id.
        tokenizer: In eval mode.
        prior: A prior of its tokens or latents, in eval mode; None: only the tokenizer was given.
        text_encoder: Encoder of prompts, for a prior that reads text.
    """

    name: str
    tokenizer: ImageTokenizer
    prior: Any = None
    text_encoder: TextEncoder | None = None

    @functools.cached_property
    def examples(self) -> Float[Tensor, "n c h w"]:
        """Pictures that come with spectok's libraries, in the shape of the model.

        Handwritten digits where it takes grey images, and whole photographs otherwise.
        """
        if self.tokenizer.image_shape[0] != 1:
            return self.tokenizer.processor(list(photographs().values()))
        settings = {"name": "digits", "split": "test", "limit": NUM_DIGITS}
        config = DataConfig.model_validate(settings)
        digits = build_dataset(config, train=False)
        return self.tokenizer.processor([to_pil(digits[n]["images"]) for n in range(NUM_DIGITS)])

    def describe(self) -> str:
        """Return one line about it, in words."""
        spec, (channels, height, width) = self.tokenizer.token_spec, self.tokenizer.image_shape
        colour = "grey" if channels == 1 else "colour"
        levels = f" in {spec.num_levels} levels" if spec.num_levels > 1 else ""
        prior = f", prior {type(self.prior).__name__}" if self.prior is not None else ""
        return (
            f"{type(self.tokenizer).__name__}: {width}×{height} {colour}, {spec.num_tokens} tokens"
            f"{levels}, {spec.bits_per_image:,.0f} bits an image{prior}"
        )


def is_prior(name: str) -> bool:
    """Return whether a name or folder is that of a prior, of its run, or of a pipeline."""
    folder = model_folder(name)
    return os.path.isdir(folder) and (draws(folder) or holds_prior(folder))


def check_names(names: Sequence[str]) -> list[str]:
    """Return the models to offer, checked before any is loaded.

    Args:
        names: Trained tokenizers, priors and pipelines. Empty: all that are installed.

    Raises:
        ConfigError: If none is given and none is installed, or one is the key of an untrained one.
        CheckpointError: If one does not exist.
        UnknownNameError: If one is no name that is known.
    """
    chosen = list(dict.fromkeys(names)) or registry.names("model")
    if not chosen:
        raise ConfigError("no trained model is installed; give one, such as a run's folder")
    for name in chosen:
        prior_folder(name) if is_prior(name) else check_trained(name)
    return chosen


def load_subject(name: str, device: str = "cpu") -> Subject:
    """Load a model.

    Args:
        name: A name or a folder that :func:`check_names` took.
        device: Where it is to be.

    Raises:
        CheckpointError: If a part of it is missing or damaged.
    """
    if not is_prior(name):
        tokenizer: Any = load_trained(name)
        return Subject(name, tokenizer.to(device))
    prior, decoder = load_pair(name)
    encoder = load_encoder(prior, name).to(device) if prior.text_width else None
    return Subject(name, decoder.to(device), prior.to(device), encoder)


class Subjects:
    """The models that the page offers, of which the last ones chosen stay in memory.

    Args:
        names: What :func:`check_names` returns.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loaded: dict[str, Subject] = {}
        self._lock = threading.Lock()  # the page's requests come in threads

    def __getitem__(self, name: str) -> Subject:
        """Return a model, loaded if it is not yet.

        Raises:
            ConfigError: If it is not one that the page offers.
        """
        if name not in self.names:  # the page's visitors choose among these, and load nothing else
            raise ConfigError(f"{name!r} is not offered here, only {', '.join(self.names)}")
        with self._lock:
            found = self._loaded.pop(name, None) or load_subject(name, self._device)
            self._loaded[name] = found
            while len(self._loaded) > KEPT:
                del self._loaded[next(iter(self._loaded))]
        return found
