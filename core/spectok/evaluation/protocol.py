"""One id for everything that decides a number, and the refusal to compare numbers of two ids.

The same weights are published with distances between distributions that differ by a factor of two,
because reference set, resize filter, rounding, feature network or sample count differed. All of
them are part of the id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from spectok.errors import InputError

VERSION = 1
"""Changes when the same settings come to mean other numbers."""


def make_protocol(dataset: Any, precision: str, seed: int, extractors: Mapping[str, str]) -> Any:
    """Return everything that decides a result besides the tokenizer, with its id.

    Args:
        dataset: The images: a :class:`spectok.data.ImageDataset`.
        precision: Type of the tokenizer's numbers, such as ``"float32"``.
        seed: Seed of whatever a tokenizer draws.
        extractors: Metric -> network and hash of its weights, for what was measured.
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
    }
    return {"id": protocol_id(protocol), **protocol}


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Return a hash of a protocol, ignoring an ``id`` that it has already."""
    rest = {key: value for key, value in protocol.items() if key != "id"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=8).hexdigest()


def compare_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the protocol that all results share.

    Args:
        results: Label -> what :func:`spectok.evaluation.evaluate` returned.

    Raises:
        InputError: If one was measured in another way; names what differs.
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
