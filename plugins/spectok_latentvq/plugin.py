"""Registers the tokenizer ``latentvq``."""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_tokenizers() -> dict[str, str]:
    """Register ``latentvq``."""
    return {"latentvq": "spectok_latentvq.model:LatentVQ"}
