"""What tests of core share: tiny runs of training, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spectok.cli import main

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
    init_from: str | None = None,
    **options: Any,
) -> Any:
    """Train a tiny tokenizer on 50 digits: a number that no batch size divides."""
    from spectok.data import DataConfig
    from spectok.training import TokenizerRecipe, TrainConfig, train_tokenizer

    defaults = {"steps": 12, "batch_size": 8, "log_every": 1, "save_every": 5, "sample_every": None}
    config = TrainConfig.model_validate(defaults | {"learning_rate": 3e-3} | options)
    data = DataConfig(name="digits", image_size=8, limit=50, max_shift=1)
    recipe = TokenizerRecipe(
        tokenizer=tokenizer, data=data, train=config, init_from=init_from, seed=seed
    )
    return train_tokenizer(recipe, output, resume=resume)


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


@pytest.fixture
def run(capsys: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., tuple[int, str, str]]:
    """Run ``spectok`` here: ``status, out, err = run("list", "tokenizers")``."""
    monkeypatch.chdir(tmp_path)

    def run(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def refused(run: Any) -> Callable[..., str]:
    """Run a command that must fail with exactly one line; return that line."""

    def refused(*words: Any) -> str:
        status, _, err = run(*words)
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert status == 2, err
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return refused
