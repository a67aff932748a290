"""``--complete`` and ``--keep``: which tokens of given images a prior keeps."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from spectok import TokenSpec
from spectok.errors import ConfigError, DataError
from spectok.token_files import read_tokens
from spectok_generation.sampling import Known


def read_known(
    path: Path, keep: str | None, spec: TokenSpec, num_images: int, weights: str | None = None
) -> Known:
    """Return the tokens to keep, from a file whose images are taken in turn.

    Args:
        path: File written by ``spectok encode``.
        keep: See :func:`parse_places`. None: the first half of the tokens.
        spec: Required layout of the tokens.
        num_images: Number of images to draw.
        weights: Fingerprint of the tokenizer. None: whichever wrote the file.

    Raises:
        DataError: If the file does not exist, is not a token file or holds no images.
        TokenError: If its tokens have a different layout, or are another tokenizer's.
        ConfigError: If ``keep`` cannot be read.
    """
    indices = torch.from_numpy(read_tokens(path, spec, weights)[0])
    if len(indices) == 0:
        raise DataError(f"{path} holds no images to complete")
    stays = parse_places(str(spec.num_tokens // 2) if keep is None else keep, spec.num_tokens)
    rows = torch.arange(num_images) % len(indices)
    return Known(indices[rows], stays.expand(num_images, -1), str(path), rows)


def parse_places(text: str, num_tokens: int) -> Bool[Tensor, "t"]:
    """Read the value of ``--keep``.

    Args:
        text: A number of leading tokens, ``"16"``, or ranges as in Python, ``"0:8,16:24"``.
        num_tokens: Number of tokens T of an image.

    Returns:
        Mask of the places to keep.

    Raises:
        ConfigError: If it is neither, or exceeds the number of tokens.
    """
    chosen = torch.zeros(num_tokens, dtype=torch.bool)
    for part in text.split(","):
        begin, colon, end = part.partition(":")
        ends = (begin or "0", end or str(num_tokens)) if colon else ("0", begin)
        if not all(number.strip().isdecimal() for number in ends):
            raise ConfigError(
                f"--keep {text} is neither a number of tokens nor ranges, such as 16 or 0:8,16:24"
            )
        first, last = map(int, ends)
        if not first < last <= num_tokens:
            raise ConfigError(
                f"--keep {text}: {part} is not a range within the {num_tokens} tokens of an image"
            )
        chosen[first:last] = True
    return chosen
