"""What the tests of training share: tiny runs, and processes that can be killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VQVAE = {
    "name": "vqvae",
    "image_size": 8,
    "in_channels": 1,
    "downsample_factor": 2,
    "codebook_size": 16,
    "codebook_dim": 4,
    "channels": 8,
    "num_blocks": 1,
    "residual_channels": 4,
    "quantizer": {"name": "ema", "revive_every": 3, "revive_below": 0.5},
}
QGVAE = {
    "name": "qgvae",
    "image_size": 8,
    "in_channels": 1,
    "num_tokens": 4,
    "codebook_size": 16,
    "codebook_dim": 4,
    "num_heads": 2,
    "max_channels": 8,
    "prefix_probability": 0.5,
    "quantizer": {"name": "voronoi", "reset_every": 3},
}


def train_tiny(
    output: Path,
    tokenizer: dict[str, Any] = VQVAE,
    *,
    seed: int = 0,
    resume: bool = False,
    **options: Any,
) -> Any:
    """Train a tiny tokenizer on 50 digits: a number that no batch size divides."""
    from spectok.data import DataConfig
    from spectok.training import TrainConfig, train_tokenizer

    defaults = {"steps": 12, "batch_size": 8, "log_every": 1, "save_every": 5, "sample_every": None}
    config = TrainConfig.model_validate(defaults | {"learning_rate": 3e-3} | options)
    data = DataConfig(name="digits", image_size=8, limit=50, max_shift=1)
    return train_tokenizer(tokenizer, data, config, output, seed=seed, resume=resume)


@pytest.fixture
def vqvae() -> dict[str, Any]:
    """Options of a tiny tokenizer whose codebook is averaged and revived."""
    return VQVAE


@pytest.fixture
def qgvae() -> dict[str, Any]:
    """Options of a tiny tokenizer with drawn prefixes and Voronoi resets."""
    return QGVAE


@pytest.fixture
def train() -> Callable[..., Any]:
    """Train a tiny tokenizer: ``train(folder, tokenizer, **options of train:)``."""
    return train_tiny


@pytest.fixture
def losses() -> Callable[[Any], list[tuple[int, str]]]:
    """Take the losses from a history as (step, every bit)."""
    return lambda history: [(r["step"], r["loss"].hex()) for r in history]
