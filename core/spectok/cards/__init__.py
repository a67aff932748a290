"""Model cards: what is known about a trained model, in the file that travels with it.

A card is the ``README.md`` of a model's folder in the format of the Hugging Face Hub. Its header
carries the numbers that were measured as claims that ``spectok eval --verify`` measures again.

The names below load on first use, so ``import spectok.cards`` imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.cards.claims import Claim
    from spectok.cards.content import Subject
    from spectok.cards.folder import CARD, read_claims, record_claim, write_card

_HOME = {
    "CARD": "spectok.cards.folder",
    "Claim": "spectok.cards.claims",
    "Subject": "spectok.cards.content",
    "read_claims": "spectok.cards.folder",
    "record_claim": "spectok.cards.folder",
    "write_card": "spectok.cards.folder",
}

__all__ = ["CARD", "Claim", "Subject", "read_claims", "record_claim", "write_card"]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
