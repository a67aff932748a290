"""What the tests of generation share: token layouts, tiny tokenizers, the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from spectok import Level, TokenSpec, load_tokenizer
from spectok.cli import main
from spectok_generation.text.clip import model_config, save_clip
from spectok_generation.text.clip_recipe import ClipConfig

SPECS = {
    "grid": TokenSpec((Level((2, 2), 3),)),
    "list": TokenSpec((Level((4,), 3, "position", 4),), prefix="tokens"),
    "shared runs": TokenSpec((Level((4,), 3, "position", 2),)),
    "two levels": TokenSpec((Level((1, 1), 4), Level((1, 3), 3)), prefix="levels"),
    "tree": TokenSpec(
        (Level((2,), 2), Level((2,), 2, "path"), Level((2,), 3, "path")), prefix="levels"
    ),
    "tree, place by place": TokenSpec(
        (Level((2,), 2), Level((2,), 2, "path"), Level((2,), 3, "path")), order="position"
    ),
}
TOKENIZERS = {
    "vqvae": {
        "image_size": 16,
        "in_channels": 1,
        "codebook_size": 16,
        "codebook_dim": 8,
        "channels": 8,
        "num_blocks": 1,
        "residual_channels": 4,
    },
    "qgvae": {
        "image_size": 16,
        "in_channels": 1,
        "num_tokens": 8,
        "codebook_size": 12,
        "codebook_dim": 8,
        "num_heads": 2,
        "max_channels": 16,
    },
}


@pytest.fixture(params=SPECS)
def spec(request) -> TokenSpec:
    """Return each kind of layout in turn, small enough to list every sequence."""
    return SPECS[request.param]


def save_tokenizer(name: str, folder: Path) -> Path:
    torch.manual_seed(1)
    load_tokenizer(name, **TOKENIZERS[name]).save_pretrained(folder)
    return folder


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request, tmp_path_factory) -> Path:
    """Return the folder of a tiny tokenizer with random weights, of each built-in kind in turn."""
    return save_tokenizer(request.param, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer_folder(tmp_path_factory) -> Path:
    """Return the folder of a tiny tokenizer with random weights."""
    return save_tokenizer("qgvae", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def spectok(capsys: Any) -> Callable[..., tuple[Any, str, str]]:
    """Run ``spectok``; return its exit status, what it printed and what it complained of."""

    def run(*words: Any) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as exit_info:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return exit_info.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def save_small_clip() -> Callable[..., None]:
    """Save a tiny CLIP as a run would, with random weights large enough that texts differ."""

    def save(folder: Path, config: dict[str, Any] | None = None) -> None:
        if config is None:
            sizes = {"image_layers": 1, "text_layers": 1, "context_length": 8, "patch_size": 16}
            widths = {"embed_dim": 12, "image_width": 16, "text_width": 16, "head_width": 8}
            config = model_config(ClipConfig(**sizes, **widths), (3, 16, 16))
        torch.manual_seed(1)
        model = open_clip.CLIP(**config)
        with torch.no_grad():
            model.text_projection.normal_()
            model.token_embedding.weight.normal_()
        save_clip(model, config, folder)

    return save


@pytest.fixture
def sharp() -> Callable[[Any], Any]:
    """Give a prior weights large enough that its predictions differ from place to place."""

    def widen(prior: Any) -> Any:
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.normal_(std=0.3)
        return prior.eval()

    return widen
