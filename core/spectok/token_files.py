"""Files of tokens: what ``spectok encode`` writes and ``spectok decode`` reads."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectok.errors import DataError, TokenError
from spectok.token_spec import TokenSpec


def write_tokens(path: Path, indices: np.ndarray, names: list[str], spec: TokenSpec) -> None:
    """Write indices with the names of their images and the layout of the tokens.

    Args:
        path: A ``.npz`` or ``.json`` file.
        indices: int64, shape (N, T).
        names: File of each image.
        spec: Layout of the T tokens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        layout = json.dumps(spec.to_dict())
        np.savez_compressed(path, indices=indices, files=np.array(names), token_spec=layout)
        return
    content = {"token_spec": spec.to_dict(), "files": names, "indices": indices.tolist()}
    path.write_text(json.dumps(content), encoding="utf-8")


def read_tokens(path: Path, spec: TokenSpec) -> tuple[np.ndarray, list[str]]:
    """Read what :func:`write_tokens` wrote, and check it against a tokenizer's layout.

    Returns:
        Indices (N, T) as int64, and the name of each image.

    Raises:
        DataError: If the file is missing, damaged or not a file of tokens.
        TokenError: If the tokens follow another layout, or are out of range.
    """
    content = _read_npz(path) if path.suffix == ".npz" else _read_json(path)
    try:
        indices = np.asarray(content["indices"])
        names = [str(name) for name in content["files"]]
        written = TokenSpec.from_dict(content["token_spec"])
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise DataError(
            f"{path} is not a file of tokens ({error}); 'spectok encode' writes one"
        ) from error
    if written != spec:
        raise TokenError(
            f"{path} holds tokens of another layout ({_summary(written)}) than this tokenizer's "
            f"({_summary(spec)}); use the tokenizer that wrote them"
        )
    if indices.ndim != 2 or indices.dtype.kind not in "iu" or len(indices) != len(names):
        raise DataError(
            f"{path}: indices of shape {indices.shape} and type {indices.dtype} do not fit "
            f"{len(names)} files; they must be integers of shape ({len(names)}, {spec.num_tokens})"
        )
    indices = indices.astype(np.int64)
    spec.validate(torch.from_numpy(indices))
    return indices, names


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            content = dict(archive)
        return content | {"token_spec": json.loads(str(content["token_spec"]))}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; 'spectok encode' writes such a file") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a file of tokens: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; 'spectok encode' writes such a file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a file of tokens: {error}") from error


def _summary(spec: TokenSpec) -> str:
    return f"{spec.num_tokens} tokens of up to {spec.max_vocab_size} values in {spec.order} order"
