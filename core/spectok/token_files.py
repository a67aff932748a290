"""Files of tokens: what ``spectok encode`` writes and ``spectok decode`` reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectok.errors import SHOWN, DataError, TokenError, one_line, shown
from spectok.reading import EXPANSION, parse_json, read_json, read_npz
from spectok.token_spec import TokenSpec
from spectok.writing import whole_file

MAX_BYTES = 1 << 30
"""Largest JSON file of tokens."""


def write_tokens(path: Path, indices: np.ndarray, names: list[str], spec: TokenSpec) -> None:
    """Write indices with the names of their images and the layout of the tokens.

    Args:
        path: A ``.npz`` or ``.json`` file.
        indices: int64, shape (N, T).
        names: File of each image.
        spec: Layout of the T tokens.

    Raises:
        DataError: If the file cannot be written; an earlier one stays as it was.
    """
    layout = spec.to_dict()
    with whole_file(path, DataError) as unfinished:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {"indices": indices, "files": np.array(names)}
            arrays["token_spec"] = json.dumps(layout)
            np.savez_compressed(unfinished, **arrays)
            if indices.nbytes > EXPANSION / 2 * unfinished.stat().st_size:
                np.savez(unfinished, **arrays)  # all alike: our own reader would suspect a bomb
        else:
            content = {"token_spec": layout, "files": names, "indices": indices.tolist()}
            unfinished.write_text(json.dumps(content), encoding="utf-8")


def read_tokens(path: Path, spec: TokenSpec) -> tuple[np.ndarray, list[str]]:
    """Read what :func:`write_tokens` wrote, and check it against a tokenizer's layout.

    Returns:
        Indices (N, T) as int64, and the name of each image.

    Raises:
        DataError: If the file is missing, damaged or not a file of tokens.
        TokenError: If the tokens follow another layout, or are out of range.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; 'spectok encode' writes such a file")
    content = _read_npz(path) if path.suffix == ".npz" else read_json(path, DataError, MAX_BYTES)
    try:
        indices = np.asarray(content["indices"])
        names = [_as_name(name) for name in content["files"]]
        written = TokenSpec.from_dict(content["token_spec"])
    except (KeyError, TypeError, ValueError, OverflowError, TokenError) as error:
        reason = one_line(str(error))[:SHOWN]
        raise DataError(
            f"{path} is not a file of tokens ({reason}); 'spectok encode' writes one"
        ) from error
    if written != spec:
        raise TokenError(
            f"{path} holds tokens of another layout ({_summary(written)}) than this tokenizer's "
            f"({_summary(spec)}); use the tokenizer that wrote them"
        )
    if not names:
        raise DataError(f"{path} holds the tokens of no image; 'spectok encode' writes some")
    if indices.ndim != 2 or indices.dtype.kind not in "iu" or len(indices) != len(names):
        raise DataError(
            f"{path}: indices of shape {indices.shape} and type {indices.dtype} do not fit "
            f"{len(names)} files; they must be integers of shape ({len(names)}, {spec.num_tokens})"
        )
    if indices.dtype == np.uint64 and indices.size and indices.max() > np.iinfo(np.int64).max:
        raise TokenError(f"{path} holds the index {indices.max()}, which no layout has")
    indices = indices.astype(np.int64)
    spec.validate(torch.from_numpy(indices))
    return indices, names


def _read_npz(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_npz(path, DataError)
    layout = parse_json(str(content.get("token_spec")), f"token_spec of {path}", DataError)
    return content | {"token_spec": layout}


def _as_name(name: Any) -> str:
    """Return the name of an image, from which a file can be named."""
    text = name if isinstance(name, str) else None
    if text is None or re.search("[\0\ud800-\udbff]", text):
        raise ValueError(f"the name {shown(name)} is not a file's")
    return text


def _summary(spec: TokenSpec) -> str:
    return f"{spec.num_tokens} tokens of up to {spec.max_vocab_size} values in {spec.order} order"
