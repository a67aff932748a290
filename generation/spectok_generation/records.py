"""How token caches and priors identify the tokenizer they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectok import ImageTokenizer
from spectok.errors import CheckpointError, shown
from spectok.modeling import SpectokModel, model_fingerprint
from spectok.reading import sha256_of_file
from spectok.weights import fingerprint

TEXTS = ("fingerprint", "class", "path", "subfolder", "pretrained")
"""What a record has as text, where it has it."""
RECORDS, PLACES = ("tokenizer", "text"), ("path", "subfolder", "pretrained")
"""Records in the config of a prior, and what in them names places of one machine."""


def tokenizer_record(
    tokenizer: ImageTokenizer, path: str | None = None, subfolder: str | None = None
) -> dict[str, Any]:
    """Return what a cache or a prior stores about its tokenizer.

    Args:
        tokenizer: The tokenizer.
        path: Where it was loaded from.
        subfolder: Folder inside it, if one was given.
    """
    inside = {} if subfolder is None else {"subfolder": subfolder}
    return inside | {
        "fingerprint": model_fingerprint(tokenizer),
        "class": type(tokenizer).__name__,
        "path": path,
        "image_shape": list(tokenizer.image_shape),
        "latent_shape": list(tokenizer.latent_shape),
    }


def prior_fingerprint(prior: SpectokModel) -> str:
    """Return a hash of a prior's class, configuration and every weight.

    It does not depend on where the prior, its tokenizer and its text encoder are.
    """
    config = prior.first_config()
    for name in RECORDS:
        if isinstance(config.get(name), dict):
            kept = {key: value for key, value in config[name].items() if key not in PLACES}
            config[name] = kept
    return fingerprint(type(prior).__name__, config, prior.state_dict())


def check_record(record: Any, place: str) -> dict[str, Any]:
    """Return the record that a cache or a prior stores, if it is one.

    Args:
        record: What was read.
        place: Where, for the message.

    Raises:
        CheckpointError: If it is no record.
    """
    texts = [record.get(key) for key in TEXTS] if isinstance(record, dict) else [0]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise CheckpointError(f"{place} is not the record of a model: {shown(record)}")
    return record


def check_hashes(directory: Path, hashes: dict[str, str] | None) -> None:
    """Compare the files of a cache with the hashes in its header.

    Reading them costs about a second per gigabyte, once per process. A cache of an earlier version
    has no hashes, and passes.

    Args:
        directory: The cache.
        hashes: SHA-256 of each file, by name.

    Raises:
        CheckpointError: Names the file that is missing or was changed.
    """
    for name, expected in (hashes or {}).items():
        if sha256_of_file(directory / name, CheckpointError) != expected:
            raise CheckpointError(
                f"{directory / name} is damaged: its bytes are not those that were written; delete "
                f"{directory} and make it again"
            )


def describe_record(record: dict[str, Any]) -> str:
    """Describe a record in a few words, for messages."""
    where = f" in {record['path']}" if record.get("path") else ""
    weights = (record.get("fingerprint") or "unknown")[:12]
    return f"the {record.get('class', 'tokenizer')}{where} (weights {weights})"


def same_tokenizer(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two records agree in class, configuration and weights."""
    found = first.get("fingerprint")
    return found is not None and found == second.get("fingerprint")
