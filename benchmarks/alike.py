"""Trained models that a benchmark compares on the same images."""

from __future__ import annotations

from spectok import ImageTokenizer, load_tokenizer
from spectok.errors import ConfigError


def load_alike(names: list[str]) -> dict[str, ImageTokenizer]:
    """Load trained tokenizers, in eval mode.

    Args:
        names: Names, folders or hub ids.

    Raises:
        ConfigError: If one is given twice, or takes images of another shape than the first.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice")
    models = {name: load_tokenizer(name).eval() for name in names}
    check_alike(models)
    return models


def check_alike(models: dict[str, ImageTokenizer]) -> None:
    """Check that tokenizers take the same images.

    Raises:
        ConfigError: If one takes images of another shape than the first.
    """
    first, *_ = models
    for name, model in models.items():
        if model.image_shape != models[first].image_shape:
            raise ConfigError(f"{name} takes other images than {first}")
