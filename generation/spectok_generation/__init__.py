"""Models of tokens: the token cache, priors of any tokenizer, and drawing from them.

The names below load on first use, so ``import spectok_generation`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectok_generation.diffusion import LDM, DiffusionOptions
    from spectok_generation.extraction import extract_tokens
    from spectok_generation.generate import draw_images
    from spectok_generation.pipeline import TokenPipeline
    from spectok_generation.priors import AutoregressivePrior, Prior, create_prior, load_prior
    from spectok_generation.sampling import SamplingOptions, sample_tokens
    from spectok_generation.text.loading import load_text_encoder
    from spectok_generation.tokens import TokenCache

_HOME = {
    "LDM": "diffusion",
    "AutoregressivePrior": "priors",
    "DiffusionOptions": "diffusion",
    "Prior": "priors",
    "SamplingOptions": "sampling",
    "TokenCache": "tokens",
    "TokenPipeline": "pipeline",
    "create_prior": "priors",
    "draw_images": "generate",
    "extract_tokens": "extraction",
    "load_prior": "priors",
    "load_text_encoder": "text.loading",
    "sample_tokens": "sampling",
}

__all__ = [
    "LDM",
    "AutoregressivePrior",
    "DiffusionOptions",
    "Prior",
    "SamplingOptions",
    "TokenCache",
    "TokenPipeline",
    "create_prior",
    "draw_images",
    "extract_tokens",
    "load_prior",
    "load_text_encoder",
    "sample_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectok_generation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spectok_generation.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
