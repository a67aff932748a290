"""spectok: learned image tokenizers, and what models of their tokens stand on.

The names below load on first use, so ``import spectok`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spectok.hookspecs import hookimpl

if TYPE_CHECKING:
    from spectok.errors import SpectokError
    from spectok.loading import create_quantizer, load_tokenizer
    from spectok.outputs import QuantizerOutput, TokenizerOutput
    from spectok.quantizer import Quantizer
    from spectok.registry import list_datasets, list_priors, list_quantizers, list_tokenizers
    from spectok.token_spec import Level, TokenSpec
    from spectok.tokenizer import ImageTokenizer

__version__ = "0.1.0"

_HOME = {
    "ImageTokenizer": "spectok.tokenizer",
    "Level": "spectok.token_spec",
    "Quantizer": "spectok.quantizer",
    "QuantizerOutput": "spectok.outputs",
    "SpectokError": "spectok.errors",
    "TokenSpec": "spectok.token_spec",
    "TokenizerOutput": "spectok.outputs",
    "create_quantizer": "spectok.loading",
    "list_datasets": "spectok.registry",
    "list_priors": "spectok.registry",
    "list_quantizers": "spectok.registry",
    "list_tokenizers": "spectok.registry",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectok' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
