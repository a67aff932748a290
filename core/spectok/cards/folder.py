"""Cards in the folders of models: written whole or not at all, and never over a person's text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spectok.cards.claims import Claim
from spectok.cards.content import (
    MODEL_INDEX,
    SECTION,
    Subject,
    indexed_values,
    numbers,
    render,
    with_claims,
)
from spectok.cards.curve import draw_curve
from spectok.cards.file import (
    find_numbers,
    is_untouched,
    read_header,
    replace_numbers,
    seal,
)
from spectok.errors import CheckpointError, SpectokError, one_line
from spectok.messages import note
from spectok.reading import read_text
from spectok.writing import write_text

CARD, CURVE, BESIDE = "README.md", "training_curve.png", "README.new.md"
"""A card, the picture in it, and the name that a new card gets beside one that a person edited."""


def write_card(
    folder: Path, subject: Subject, records: Sequence[Mapping[str, Any]] = ()
) -> Path | None:
    """Write the card of a model that has just been trained.

    It has no numbers yet, unless training went on from a finished run and changed no weight: then
    it has those of the card before it.

    The model is saved before, and stays as it is whatever happens here: a card that cannot be
    written is a remark on stderr. A card that a person has edited stays; the new one is written
    beside it.

    Args:
        folder: Folder of the model.
        subject: What is known about it.
        records: The lines of the run's log, for the training curve.

    Returns:
        The file that was written; None if none could be.
    """
    path = folder / CARD
    try:
        if draw_curve(records, folder / CURVE):
            subject = replace(subject, curve=CURVE)
        if os.path.lexists(path) and not is_untouched(read_text(path, CheckpointError)):
            note(f"{path} was not written by spectok, or edited; the new card is {BESIDE}")
            path = folder / BESIDE
        card = _with_earlier(path, subject) if path.name == CARD else render(subject)
        write_text(path, seal(card), CheckpointError)
    except SpectokError as error:
        note(f"the model is saved, its card is not: {error}")
        return None
    return path


def _with_earlier(path: Path, subject: Subject) -> str:
    """Return a new card, not sealed yet, with the numbers of the same weights that stand there."""
    card = render(subject)
    if not path.is_file():
        return card
    earlier = claims_of(read_header(read_text(path, CheckpointError), str(path)), str(path))
    kept = [claim for claim in earlier if claim.weights == subject.weights]
    return with_claims(card, kept, subject.weights, subject.name) if kept else card


def record_claim(folder: Path, claim: Claim, subject: Subject) -> Path:
    """Write numbers into the card of a model; a model without a card gets one.

    Claims of the same protocol are replaced, as are all claims of other weights. Nothing else of
    the card is changed.

    Args:
        folder: Folder of the model.
        claim: The numbers.
        subject: What a new card says about the model.

    Raises:
        CheckpointError: If the card cannot be read or written.
    """
    path = folder / CARD
    fresh = not os.path.lexists(path)
    card = render(subject) if fresh else read_text(path, CheckpointError)
    untouched = fresh or is_untouched(card)
    earlier = [] if fresh else claims_of(read_header(card, str(path)), str(path))
    kept = [c for c in earlier if c.weights == claim.weights and c.protocol_id != claim.protocol_id]
    before = {c.protocol_id for c in earlier}
    card = with_claims(card, [*kept, claim], claim.weights, subject.name, before)
    write_text(path, seal(card) if untouched else card, CheckpointError)
    return path


def read_claims(path: Path) -> tuple[list[Claim], list[str]]:
    """Return the claims of a card, and where its text or its list of results says otherwise.

    Args:
        path: The card.

    Raises:
        CheckpointError: If it cannot be read, or claims nothing.
    """
    card = read_text(path, CheckpointError)
    header = read_header(card, str(path))
    claims = claims_of(header, str(path))
    if not claims:
        raise CheckpointError(
            f"{path} claims no numbers; 'spectok eval {one_line(str(path.parent))} --card' "
            f"measures some and writes them into it"
        )
    contradictions = []
    by_protocol = {claim.protocol_id: claim.values for claim in claims}
    for protocol, name, value in indexed_values(header):
        listed = f"{MODEL_INDEX} lists {one_line(name)} {one_line(str(value))}"
        claimed = by_protocol.get(protocol or "")
        if claimed is None:
            contradictions.append(f"{listed}, and no claim tells how to measure that again")
        elif claimed.get(name) != value:
            contradictions.append(f"{listed}, the claim says {claimed.get(name)}")
    found = find_numbers(card)
    if found is not None and found != numbers(claims):
        contradictions.append("the table of numbers in the text is not that of the claims")
    outside = replace_numbers(card, "") if found is not None else card
    if any(f"`{protocol}`" in outside for protocol in by_protocol):
        contradictions.append(
            "numbers in the text stand outside the two comments between which they are compared"
        )
    return claims, contradictions


def claims_of(header: Mapping[str, Any], place: str) -> list[Claim]:
    """Return the claims in the header of a card; none if it has no section of ours.

    Raises:
        CheckpointError: If one is no claim.
    """
    section = header.get(SECTION)
    measured = section.get("measured") if isinstance(section, Mapping) else None
    if measured is not None and not isinstance(measured, list):
        raise CheckpointError(f"{place}: {SECTION}.measured is no list of claims")
    return [
        Claim.from_dict(content, f"{place}: claim {number}")
        for number, content in enumerate(measured or [], 1)
    ]
