"""The likelihood that the card of a prior claims, measured again."""

from __future__ import annotations

from collections.abc import Callable

from spectok import ImageTokenizer
from spectok.cards import Claim
from spectok.data import ImageDataset, OriginalImages
from spectok.errors import CheckpointError
from spectok.evaluation.verifying import Check, compare_claims
from spectok_generation.likelihood import measure_likelihood
from spectok_generation.priors import Prior
from spectok_generation.records import prior_fingerprint
from spectok_generation.text.encoder import TextEncoder

COUNTED = ("parameters", "num_images")


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
