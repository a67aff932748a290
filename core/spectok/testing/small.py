"""Small models of anything registered, which train in seconds on one core."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from spectok.loading import create_quantizer, load_tokenizer
from spectok.plugins import registry
from spectok.quantizers import Quantizer
from spectok.recipes.schema import QuantizerOption
from spectok.tokenizer import ImageTokenizer

SMALL: dict[str, Any] = {
    # sizes
    "image_size": 16,
    "in_channels": 1,
    "num_tokens": 8,
    "codebook_size": 32,
    "codebook_dim": 8,
    "channels": 16,
    "residual_channels": 8,
    "max_channels": 16,
    "num_blocks": 1,
    "num_heads": 2,
    # what is otherwise frozen
    "train_decoder": True,
    # rare events happen within a few steps
    "prefix_probability": 0.5,
    "reset_every": 2,
    "revive_every": 2,
    "revive_below": 0.9,
}

SIZES = ("dim", "num_tokens", "codebook_size")  # which a quantizer passes to its parts


def small_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return small values for the arguments of a constructor that have one of the usual names."""
    return {k: v for k, v in SMALL.items() if k in inspect.signature(function).parameters}


def small_tokenizer(name: str, **options: Any) -> ImageTokenizer:
    """Build a small model of a registered tokenizer, 16 pixels wide and grey.

    Args:
        name: A registered key.
        **options: Constructor options that override the small ones.
    """
    return load_tokenizer(name, **small_options(registry.get_tokenizer(name)) | options)


def small_quantizer(name: str, **options: Any) -> Quantizer:
    """Build a small model of a registered quantizer: 16 vectors of length 8, 32 codes.

    Args:
        name: A registered name.
        **options: Constructor options that override the small ones.
    """
    sizes = {"dim": 8, "num_tokens": 16, "codebook_size": 32}
    return create_quantizer(name, **_small_quantizer_options(name) | sizes | options)


def _small_quantizer_options(name: str) -> dict[str, Any]:
    """Return small options of a quantizer and of its parts, except the parts' sizes."""
    function = registry.get_quantizer(name)
    parameters = inspect.signature(function, eval_str=True).parameters
    parts = {k: p.default for k, p in parameters.items() if p.annotation == QuantizerOption}
    nested = {
        k: {"name": part}
        | {o: v for o, v in _small_quantizer_options(part).items() if o not in SIZES}
        for k, part in parts.items()
        if isinstance(part, str)
    }
    return small_options(function) | nested
