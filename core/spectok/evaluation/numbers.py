"""Numbers of a model, written into its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectok.cards import Claim, Subject, record_claim
from spectok.data import DataConfig
from spectok.evaluation.terms import data_section
from spectok.tokenizer import ImageTokenizer
from spectok.training.card import describe_tokenizer


def record_numbers(
    tokenizer: ImageTokenizer, folder: Path, result: Mapping[str, Any], data: DataConfig
) -> Path:
    """Write what was measured into the card of a model; see :func:`spectok.cards.record_claim`.

    Args:
        tokenizer: The model that was measured.
        folder: Its folder.
        result: What :func:`spectok.evaluation.evaluate` returned.
        data: The images that it was measured on.

    Returns:
        The card.

    Raises:
        CheckpointError: If the card cannot be read or written.
    """
    return record_result(describe_tokenizer(tokenizer, folder), folder, result, data)


def record_result(
    subject: Subject, folder: Path, result: Mapping[str, Any], data: DataConfig
) -> Path:
    """Write what was measured into the card of a model of any kind; see :func:`record_numbers`.

    Args:
        subject: What a new card says about the model.
        folder: Its folder.
        result: What measured it, with ``metrics`` and ``protocol``.
        data: The images that it was measured on.
    """
    return record_claim(
        folder, Claim.from_result(result, subject.weights, data_section(data)), subject
    )
