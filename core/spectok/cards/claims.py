"""A claim: numbers, and everything that it takes to measure them again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from spectok.errors import CheckpointError, shown

SCALARS = (
    "codebook_usage",
    "perplexity",
    "distinct_usage",
    "distinct_perplexity",
    "bits_per_image",
    "parameters",
    "num_images",
)
"""Results of an evaluation that a claim holds besides its metrics."""


@dataclass(frozen=True)
class Claim:
    """What was measured of a model, and how.

    Args:
        weights: Fingerprint of the model: class, options and every weight.
        data: The ``data:`` section of the reference images, without their path.
        protocol: The protocol of the evaluation, with its ``id``.
        values: Name -> number; None, only from a file of results: there is none.
        reference_images: Hash of the decoded reference images. None: not recorded.
    """

    weights: str
    data: dict[str, Any]
    protocol: dict[str, Any]
    values: dict[str, float] = field(default_factory=dict)
    reference_images: str | None = None

    @property
    def protocol_id(self) -> str:
        """Id of the protocol."""
        return self.protocol["id"]

    def to_dict(self) -> dict[str, Any]:
        """Return the claim in plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any, place: str) -> Claim:
        """Return the claim that a card or a JSON file holds.

        Args:
            content: What was read.
            place: Where, for the message.

        Raises:
            CheckpointError: If it is no claim; names what is wrong with it.
        """
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{place} is no claim: {shown(content)}")
        kinds = {"weights": str, "data": dict, "protocol": dict, "values": dict}
        for key, kind in kinds.items():
            if not isinstance(content.get(key), kind):
                raise CheckpointError(
                    f"{place} has no {key} that a claim needs: {shown(content.get(key))}"
                )
        protocol, values = content["protocol"], content["values"]
        images = content.get("reference_images")
        if not isinstance(protocol.get("id"), str):
            raise CheckpointError(f"{place} names a protocol without an id: {shown(protocol)}")
        if images is not None and not isinstance(images, str):
            raise CheckpointError(f"{place}: reference_images {shown(images)} is no hash")
        for name, value in values.items():
            if not _is_number(value):
                raise CheckpointError(f"{place} claims {shown(name)} {shown(value)}, no number")
        if not values:
            raise CheckpointError(f"{place} claims no number")
        data = {key: value for key, value in content["data"].items() if key != "path"}
        return cls(content["weights"], data, dict(protocol), dict(values), images)

    @classmethod
    def from_result(cls, result: Mapping[str, Any], weights: str, data: Mapping[str, Any]) -> Claim:
        """Return the claim that an evaluation supports.

        Args:
            result: What :func:`spectok.evaluation.evaluate`, or another measurement with
                ``metrics`` and ``protocol``, returned.
            weights: Fingerprint of the model.
            data: The ``data:`` section of the images; its path is left out.
        """
        values = result["metrics"] | {name: result[name] for name in SCALARS if name in result}
        return cls(
            weights,
            {key: value for key, value in data.items() if key != "path"},
            dict(result["protocol"]),
            {name: value for name, value in values.items() if _is_number(value)},
            result.get("reference_images"),
        )


def describe_images(claim: Claim) -> str:
    """Return which images a claim is about, and how they were brought to one shape."""
    protocol, data = claim.protocol, claim.data
    count = protocol.get("num_images")
    number = f"{count:,}" if isinstance(count, int) else "an unknown number of"
    name = f"{data.get('name', 'unknown data')}/{data.get('split', 'train')}"
    return f"{number} images of {name}, {describe_resizing(protocol.get('preprocessing'))}"


def describe_resizing(preprocessing: Any) -> str:
    """Return the geometric steps and the resize filter of a protocol, in a few words."""
    if not isinstance(preprocessing, Mapping):
        return "resized in a way that is not recorded"
    steps = [step for step in preprocessing.get("steps", []) if len(step) == 2]
    if not steps:
        return "at their own sizes"
    text = ", ".join(f"{str(name).replace('_', ' ')} {size}" for name, size in steps)
    antialias = "antialiased" if preprocessing.get("antialias") else "not antialiased"
    return f"{text} ({preprocessing.get('filter')}, {antialias})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
