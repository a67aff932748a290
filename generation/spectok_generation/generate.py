"""From a trained prior and its tokenizer to images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import ImageTokenizer, load_tokenizer, registry
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok_generation.priors import AutoregressivePrior, Prior, load_prior
from spectok_generation.records import describe_record, same_tokenizer, tokenizer_record

OWN_TOKENIZER = Path("tokenizer", "model")
"""Where a run that trained its own tokenizer keeps it."""


def load_pair(
    prior_path: str | os.PathLike[str], tokenizer_path: str | os.PathLike[str] | None = None
) -> tuple[AutoregressivePrior, ImageTokenizer]:
    """Load a trained prior and the tokenizer it belongs to, in eval mode.

    Args:
        prior_path: Directory of a saved prior, or of its run.
        tokenizer_path: Its tokenizer. None: the one recorded when the prior was trained.

    Raises:
        CheckpointError: If either is missing, or they do not belong together.
        InputError: If the prior is not one that the sampler can draw from.
    """
    prior = load_prior(prior_path)
    if not isinstance(prior, AutoregressivePrior):
        raise InputError(f"{prior_path} holds a {type(prior).__name__}, which is not sampled here")
    where = os.fspath(tokenizer_path or _recorded_path(prior, Path(prior_path)))
    tokenizer = load_trained(where)
    check_pair(prior, tokenizer, where)
    return prior, tokenizer


def load_trained(path: str) -> ImageTokenizer:
    """Load a trained tokenizer from its folder, the folder of its run, or the hub; in eval mode.

    Raises:
        ConfigError: If it is a registered key, which has no weights.
        CheckpointError: If it does not load.
    """
    if path in registry.list_tokenizers() and not Path(path).is_dir():
        raise ConfigError(
            f"{path!r} names an untrained tokenizer; give the folder of a trained one, such as the "
            f"one that 'spectok train {path}' ends with"
        )
    inside = Path(path, "model")
    return load_tokenizer(inside if (inside / "config.json").is_file() else path).eval()


def check_pair(prior: Prior, tokenizer: ImageTokenizer, where: str | None = None) -> None:
    """Refuse a tokenizer that did not make the tokens that a prior learned.

    Args:
        prior: A trained prior.
        tokenizer: The tokenizer to decode with.
        where: Its path, for the message.

    Raises:
        CheckpointError: Names the tokenizer that was given and the one that is needed.
    """
    given, needed = tokenizer_record(tokenizer, where), prior.tokenizer_record
    if needed and not same_tokenizer(given, needed):
        raise CheckpointError(
            f"this prior models the tokens of {describe_record(needed)}, not those of "
            f"{describe_record(given)}; give the tokenizer it was trained with"
        )
    if prior.token_spec != tokenizer.token_spec:
        raise CheckpointError(
            f"this prior models {prior.token_spec.num_tokens} tokens laid out differently from the "
            f"{tokenizer.token_spec.num_tokens} of {describe_record(given)}"
        )


def choose_labels(
    prior: Prior, num_images: int, wanted: int | None = None
) -> Int[Tensor, "n"] | None:
    """Return the class of each image to draw: the wanted one, or all classes in turn.

    Raises:
        InputError: If the prior has no such class.
    """
    if wanted is None and not prior.num_classes:
        return None
    if wanted is None:
        return torch.arange(num_images) % prior.num_classes
    if not 0 <= wanted < prior.num_classes:
        known = f"0..{prior.num_classes - 1}" if prior.num_classes else "none: it is unconditional"
        raise InputError(f"class {wanted} is not one of this prior's classes ({known})")
    return torch.full((num_images,), wanted)


@torch.no_grad()
def decode_tokens(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "n t"], batch_size: int = 64
) -> Float[Tensor, "n c h w"]:
    """Decode tokens batch by batch into images on the CPU, about [-1, 1] (not clamped)."""
    batches = indices.to(tokenizer.device).split(batch_size)
    return torch.cat([tokenizer.decode(batch).float().cpu() for batch in batches])


def _recorded_path(prior: Prior, prior_path: Path) -> Path:
    record: dict[str, Any] = prior.tokenizer_record
    recorded = Path(record["path"]) if record.get("path") else None
    runs = (prior_path, prior_path.parent)
    for candidate in [recorded, *(run / OWN_TOKENIZER for run in runs)]:
        if candidate is not None and candidate.is_dir():
            return candidate
    if recorded is not None and record["path"].count("/") == 1:
        return recorded  # a hub id
    raise CheckpointError(
        f"the tokenizer of this prior is not at {recorded or 'any recorded place'}; give it with "
        f"--tokenizer"
    )
