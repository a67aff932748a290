"""How token caches and priors identify the tokenizer they belong to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from spectok import ImageTokenizer


def tokenizer_record(tokenizer: ImageTokenizer, path: str | None = None) -> dict[str, Any]:
    """Return what a cache or a prior stores about its tokenizer.

    Args:
        tokenizer: The tokenizer.
        path: Where it was loaded from.
    """
    return {
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "class": type(tokenizer).__name__,
        "path": path,
        "image_shape": list(tokenizer.image_shape),
        "latent_shape": list(tokenizer.latent_shape),
    }


def tokenizer_fingerprint(tokenizer: ImageTokenizer) -> str:
    """Return a hash of a tokenizer's class, configuration and every weight."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    digest.update(json.dumps(tokenizer.first_config(), sort_keys=True).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_record(record: dict[str, Any]) -> str:
    """Describe a record in a few words, for messages."""
    where = f" in {record['path']}" if record.get("path") else ""
    return f"the {record.get('class', 'tokenizer')}{where} (weights {record['fingerprint'][:12]})"


def same_tokenizer(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two records agree in class, configuration and weights."""
    return first["fingerprint"] == second["fingerprint"]
