"""The likelihood that the card of a prior claims: written down, and measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spectok import ImageTokenizer
from spectok.cards import Claim, record_claim
from spectok.data import DataConfig, ImageDataset, OriginalImages
from spectok.errors import CheckpointError
from spectok.evaluation.terms import data_section
from spectok.evaluation.verifying import Check, compare_claims
from spectok_generation.card import describe_prior
from spectok_generation.likelihood import measure_likelihood
from spectok_generation.priors import Prior
from spectok_generation.records import prior_fingerprint
from spectok_generation.text.encoder import TextEncoder

COUNTED = ("parameters", "num_images")


def record_likelihood(
    prior: Prior, folder: Path, result: Mapping[str, Any], data: DataConfig
) -> Path:
    """Write a likelihood into the card of a prior; see :func:`spectok.cards.record_claim`.

    Args:
        prior: The prior that was measured.
        folder: Its folder, or that of its pipeline.
        result: What :func:`measure_likelihood` returned.
        data: The images that it was measured on.

    Returns:
        The card.

    Raises:
        CheckpointError: If the card cannot be read or written.
    """
    subject = describe_prior(prior, folder)
    return record_claim(
        folder, Claim.from_result(result, subject.weights, data_section(data)), subject
    )


def verify_likelihood(
    claim: Claim,
    prior: Prior,
    tokenizer: ImageTokenizer,
    dataset: ImageDataset | OriginalImages,
    *,
    encoder: TextEncoder | None = None,
    batch_size: int = 64,
    on_images: Callable[[int], None] | None = None,
) -> list[Check]:
    """Measure again what a card claims of a prior.

    Args:
        claim: What is claimed.
        prior: See :func:`measure_likelihood`, as for the others.
        tokenizer: Its tokenizer.
        dataset: The images; see :func:`spectok.evaluation.verifying.reference_data`.
        encoder: Its text encoder.
        batch_size: Images at once.
        on_images: Called with the number of images done since the last call.

    Raises:
        CheckpointError: If the claim is no likelihood, or the three do not belong together.
    """
    if "likelihood" not in claim.protocol or isinstance(dataset, OriginalImages):
        raise CheckpointError(
            f"protocol {claim.protocol_id} is not that of a likelihood, which is what --verify "
            f"measures again of a prior"
        )
    result = measure_likelihood(
        prior,
        tokenizer,
        dataset,
        encoder=encoder,
        batch_size=batch_size,
        on_images=on_images,
    )
    found = Claim.from_result(result, prior_fingerprint(prior), claim.data)
    return compare_claims(claim, found, COUNTED)
