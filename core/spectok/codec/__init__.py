"""Compressed files of images: the tokens of any tokenizer, packed or coded with a prior.

The names below load on first use, so ``import spectok.codec`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.codec.codec import Codec, Decompressed, StoredTokens
    from spectok.codec.coder import TokenCoder
    from spectok.codec.rate_distortion import measure_rates

_HOME = {
    "Codec": "spectok.codec.codec",
    "Decompressed": "spectok.codec.codec",
    "StoredTokens": "spectok.codec.codec",
    "TokenCoder": "spectok.codec.coder",
    "measure_rates": "spectok.codec.rate_distortion",
}

__all__ = ["Codec", "Decompressed", "StoredTokens", "TokenCoder", "measure_rates"]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
