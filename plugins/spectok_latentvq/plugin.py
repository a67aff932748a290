"""Registers the tokenizer ``latentvq``."""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, Any]:
    """Register ``latentvq``."""
    from spectok_latentvq.model import LatentVQ

    return {"latentvq": LatentVQ}
