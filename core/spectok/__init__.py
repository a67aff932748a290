"""spectok: learned image tokenizers, and what models of their tokens stand on.

The names below load on first use, so ``import spectok`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports
from spectok.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from spectok.errors import SpectokError
    from spectok.loading import create_quantizer, load_tokenizer
    from spectok.outputs import QuantizerOutput, TokenizerOutput
    from spectok.plugins.registry import (
        list_datasets,
        list_priors,
        list_quantizers,
        list_tokenizers,
    )
    from spectok.quantizers import Quantizer
    from spectok.token_spec import Level, TokenSpec
    from spectok.tokenizer import ImageTokenizer

__version__ = "0.1.0"

_HOME = {
    "ImageTokenizer": "spectok.tokenizer",
    "Level": "spectok.token_spec",
    "Quantizer": "spectok.quantizers",
    "QuantizerOutput": "spectok.outputs",
    "SpectokError": "spectok.errors",
    "TokenSpec": "spectok.token_spec",
    "TokenizerOutput": "spectok.outputs",
    "create_quantizer": "spectok.loading",
    "list_datasets": "spectok.plugins.registry",
    "list_priors": "spectok.plugins.registry",
    "list_quantizers": "spectok.plugins.registry",
    "list_tokenizers": "spectok.plugins.registry",
    "load_tokenizer": "spectok.loading",
}

__all__ = [
    "ImageTokenizer",
    "Level",
    "Quantizer",
    "QuantizerOutput",
    "SpectokError",
    "TokenSpec",
    "TokenizerOutput",
    "__version__",
    "create_quantizer",
    "hookimpl",
    "list_datasets",
    "list_priors",
    "list_quantizers",
    "list_tokenizers",
    "load_tokenizer",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME, also=("__version__", "hookimpl"))
