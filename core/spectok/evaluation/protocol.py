"""One id for how a number was measured; numbers with different ids are not compared.

For the same weights, published Fréchet distances differ by a factor of two because reference set,
resize filter, rounding, feature network or sample count differed. All of these are part of the id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from spectok.errors import InputError

VERSION = 1
"""Changes whenever the same settings begin to give different numbers."""


def make_protocol(
    dataset: Any,
    precision: str,
    seed: int,
    extractors: Mapping[str, str],
    features: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Return everything that decides a result besides the model that is measured, with its id.

    Args:
        dataset: The images: a :class:`spectok.data.ImageDataset`.
        precision: Type of the model's numbers, such as ``"float32"``.
        seed: Seed of the random numbers that the model draws, if any.
        extractors: Measured metric -> network and hash of its weights.
        features: How sets of images are compared in their features. None: they are not.
        **more: Whatever else decides the result.
    """
    protocol = {
        "version": VERSION,
        "reference": dataset.fingerprint,
        "num_images": len(dataset),
        "preprocessing": dataset.preprocessing,
        "rounding": "uint8",
        "extractors": dict(sorted(extractors.items())),
        "precision": precision,
        "seed": seed,
        **({} if features is None else {"features": dict(features)}),
        **more,
    }
    return {"id": protocol_id(protocol), **protocol}


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Return a hash of a protocol, ignoring any ``id`` in it."""
    rest = {key: value for key, value in protocol.items() if key != "id"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=8).hexdigest()


def compare_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the protocol that all results share.

    Args:
        results: Label -> what :func:`spectok.evaluation.evaluate` returned.

    Raises:
        InputError: If one was measured by another protocol; names what differs.
    """
    (first, reference), *others = results.items()
    ours = reference["protocol"]
    for label, result in others:
        theirs = result["protocol"]
        if theirs["id"] == ours["id"]:
            continue
        keys = [k for k in {**ours, **theirs} if k != "id" and ours.get(k) != theirs.get(k)]
        differences = ", ".join(f"{k} {ours.get(k)!r} and {theirs.get(k)!r}" for k in keys)
        raise InputError(
            f"results of {first} and {label} have the protocols {ours['id']} and {theirs['id']} "
            f"and cannot be compared ({differences}); evaluate both alike"
        )
    return dict(ours)
