"""What a card says of its model in one row of a table, read without any library of networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectok.cards.claims import Claim
from spectok.cards.file import read_header
from spectok.cards.folder import CARD, claims_of
from spectok.errors import CheckpointError
from spectok.reading import read_text
from spectok.recipes.files import data_of_run

SHOWN = ("psnr", "ssim", "bits_per_image")
"""Numbers of a row, as far as they are claimed."""


def summarize(folder: Path) -> dict[str, Any]:
    """Return what the card in a model's folder says, and the size of that folder.

    The numbers are those of the claim on the most images.

    Args:
        folder: Folder of a model; one without a card has a size alone.

    Returns:
        ``data``, ``bits_per_image``, ``psnr`` (dB), ``ssim``, ``num_images``, ``protocol``,
        ``license``, ``data_license`` and ``bytes``; None where the card does not say it.

    Raises:
        CheckpointError: If the card cannot be read.
    """
    path = folder / CARD
    header = read_header(read_text(path, CheckpointError), str(path)) if path.is_file() else {}
    claim = _largest(claims_of(header, str(path)))
    datasets = header.get("datasets")
    named = (
        datasets[0] if isinstance(datasets, list) and datasets else data_of_run(folder).get("name")
    )
    return {
        "data": named if claim is None else claim.data.get("name"),
        **{name: None if claim is None else claim.values.get(name) for name in SHOWN},
        "num_images": None if claim is None else claim.protocol.get("num_images"),
        "protocol": None if claim is None else claim.protocol_id,
        "license": header.get("license"),
        "data_license": header.get("data_license"),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }


def _largest(claims: Sequence[Claim]) -> Claim | None:
    return max(claims, key=lambda claim: claim.protocol.get("num_images") or 0, default=None)
