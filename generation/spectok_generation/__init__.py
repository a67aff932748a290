"""Generative models of tokens: the token cache, priors for any tokenizer, and sampling.

The names below load on first use, so ``import spectok_generation`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok_generation.coding import PriorCoder
    from spectok_generation.diffusion import LDM, DiffusionOptions
    from spectok_generation.drawing import draw_images
    from spectok_generation.evaluation import evaluate_prior
    from spectok_generation.extraction import extract_tokens
    from spectok_generation.likelihood import measure_likelihood
    from spectok_generation.masked import MaskedOptions, MaskedPrior
    from spectok_generation.pipeline import TokenPipeline
    from spectok_generation.priors import AutoregressivePrior, Prior, create_prior, load_prior
    from spectok_generation.sample_folder import Wanted, draw_to_folder
    from spectok_generation.sampling import SamplingOptions, sample_tokens
    from spectok_generation.text.encoder_loading import load_text_encoder
    from spectok_generation.tokens import TokenCache

_HOME = {
    "LDM": "spectok_generation.diffusion",
    "AutoregressivePrior": "spectok_generation.priors",
    "DiffusionOptions": "spectok_generation.diffusion",
    "MaskedOptions": "spectok_generation.masked",
    "MaskedPrior": "spectok_generation.masked",
    "Prior": "spectok_generation.priors",
    "PriorCoder": "spectok_generation.coding",
    "SamplingOptions": "spectok_generation.sampling",
    "TokenCache": "spectok_generation.tokens",
    "TokenPipeline": "spectok_generation.pipeline",
    "Wanted": "spectok_generation.sample_folder",
    "create_prior": "spectok_generation.priors",
    "draw_images": "spectok_generation.drawing",
    "draw_to_folder": "spectok_generation.sample_folder",
    "evaluate_prior": "spectok_generation.evaluation",
    "extract_tokens": "spectok_generation.extraction",
    "load_prior": "spectok_generation.priors",
    "load_text_encoder": "spectok_generation.text.encoder_loading",
    "measure_likelihood": "spectok_generation.likelihood",
    "sample_tokens": "spectok_generation.sampling",
}

__all__ = [
    "LDM",
    "AutoregressivePrior",
    "DiffusionOptions",
    "MaskedOptions",
    "MaskedPrior",
    "Prior",
    "PriorCoder",
    "SamplingOptions",
    "TokenCache",
    "TokenPipeline",
    "Wanted",
    "create_prior",
    "draw_images",
    "draw_to_folder",
    "evaluate_prior",
    "extract_tokens",
    "load_prior",
    "load_text_encoder",
    "measure_likelihood",
    "sample_tokens",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
