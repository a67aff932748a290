"""Files of tokens: what ``spectok encode`` writes and ``spectok decode`` reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spectok.errors import SHOWN, DataError, InputError, TokenError, one_line, shown
from spectok.reading import EXPANSION, parse_json, read_json, read_npz
from spectok.sizes import as_size
from spectok.tiling import Tiling
from spectok.token_spec import TokenSpec
from spectok.writing import whole_file

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 30
"""Largest JSON file of tokens."""
MAX_PIXELS = 1 << 28
"""Pixels of the largest image that a file of tokens may describe."""
TILES, WEIGHTS = "tiles", "weights"


@dataclass(frozen=True)
class StoredImage:
    """The tokens of one image in a file.

    Args:
        name: File of the image.
        tiling: Its size and its tiles.
        indices: int64, shape (n, T): the tokens of each tile.
    """

    name: str
    tiling: Tiling
    indices: Tensor


def write_tokens(
    path: Path,
    indices: np.ndarray,
    names: list[str],
    spec: TokenSpec,
    tilings: Sequence[Tiling] | None = None,
    weights: str | None = None,
) -> None:
    """Write indices with the names of their images and the layout of the tokens.

    Args:
        path: A ``.npz`` or ``.json`` file.
        indices: int64, shape (N, T); of images in tiles, one row per tile, image by image.
        names: File of each image.
        spec: Layout of the T tokens.
        tilings: The tiles of each image, all of one size and overlap. None: each image is one of
            the tokenizer's own size.
        weights: Fingerprint of the tokenizer, by which a reader tells another one of equal layout.

    Raises:
        DataError: If the file cannot be written; an earlier one stays as it was.
    """
    layout, tiles = spec.to_dict(), _describe_tilings(tilings)
    made_by = {} if weights is None else {WEIGHTS: weights}
    with whole_file(path, DataError) as unfinished:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {"indices": indices, "files": np.array(names)}
            arrays["token_spec"] = json.dumps(layout)
            arrays |= {key: json.dumps(value) for key, value in (tiles | made_by).items()}
            np.savez_compressed(unfinished, **arrays)
            if indices.nbytes > EXPANSION / 2 * unfinished.stat().st_size:
                np.savez(unfinished, **arrays)  # all alike: our own reader would suspect a bomb
        else:
            content = {"token_spec": layout, "files": names, "indices": indices.tolist()}
            unfinished.write_text(json.dumps(content | tiles | made_by), encoding="utf-8")


def read_tokens(
    path: Path, spec: TokenSpec, weights: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Read what :func:`write_tokens` wrote, and check it against a tokenizer's layout.

    Args:
        path: The file.
        spec: The layout.
        weights: Fingerprint of the tokenizer. None: whichever wrote the file.

    Returns:
        Indices (N, T) as int64, and the name of each image.

    Raises:
        DataError: If the file is missing, damaged or not a file of tokens.
        TokenError: If the tokens follow another layout, are out of range, are those of tiles, or
            were written by another tokenizer.
    """
    content = _read(path)
    if TILES in content:
        raise TokenError(
            f"{path} holds tokens of images at another size, or in tiles, which only 'spectok "
            "decode' reads; encode the images without --image-size and --tile"
        )
    indices, names = _check(path, content, spec, weights)
    if len(indices) != len(names):
        raise _misfit(path, indices, len(names), spec)
    return indices, names


def read_images(path: Path, tokenizer: Any, weights: str | None = None) -> list[StoredImage]:
    """Read what :func:`write_tokens` wrote, at whatever image size, in tiles or not.

    Args:
        path: The file.
        tokenizer: The :class:`~spectok.ImageTokenizer` that wrote it.
        weights: Its fingerprint. None: whichever of this layout wrote the file.

    Raises:
        DataError: If the file is missing, damaged or not a file of tokens.
        TokenError: If the tokens follow another layout, are out of range, or are another
            tokenizer's.
        InputError: If the tokenizer does not take images, or tiles, of that size.
    """
    content = _read(path)
    own: Any = tuple(tokenizer.image_shape[1:])
    if TILES not in content:
        indices, names = read_tokens(path, tokenizer.token_spec, weights)
        tilings = [Tiling(own, own)] * len(names)
    else:
        tilings = _read_tilings(path, content[TILES])
        spec = tokenizer.token_spec_at(tilings[0].tile_size)
        indices, names = _check(path, content, spec, weights)
        if len(names) != len(tilings) or sum(t.num_tiles for t in tilings) != len(indices):
            raise _misfit(path, indices, len(names), spec)
    ends = np.cumsum([tiling.num_tiles for tiling in tilings])[:-1]
    parts = np.split(indices, ends)
    return [StoredImage(*image) for image in zip(names, tilings, map(torch.from_numpy, parts))]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path} does not exist; 'spectok encode' writes such a file")
    content = _read_npz(path) if path.suffix == ".npz" else read_json(path, DataError, MAX_BYTES)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a file of tokens; 'spectok encode' writes one")
    return content


def _check_weights(path: Path, content: dict[str, Any], weights: str | None) -> None:
    """Refuse tokens of other weights: their layout may be equal, and what they mean is not.

    A file that does not name its tokenizer, as earlier ones do not, is taken.
    """
    written = content.get(WEIGHTS)
    if weights is not None and isinstance(written, str) and written != weights:
        raise TokenError(
            f"{path} holds tokens of another tokenizer (weights {shown(written[:12])}, this one's "
            f"{weights[:12]}); use the one that wrote them"
        )


def _check(
    path: Path, content: Any, spec: TokenSpec, weights: str | None
) -> tuple[np.ndarray, list[str]]:
    """Return the indices, one row per image or tile, and the names of the images."""
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
    _check_weights(path, content, weights)
    if not names:
        raise DataError(f"{path} holds the tokens of no image; 'spectok encode' writes some")
    if indices.ndim != 2 or indices.dtype.kind not in "iu":
        raise _misfit(path, indices, len(names), spec)
    if indices.dtype == np.uint64 and indices.size and indices.max() > np.iinfo(np.int64).max:
        raise TokenError(f"{path} holds the index {indices.max()}, which no layout has")
    indices = indices.astype(np.int64)
    spec.validate(torch.from_numpy(indices))
    return indices, names


def _misfit(path: Path, indices: np.ndarray, count: int, spec: TokenSpec) -> DataError:
    return DataError(
        f"{path}: indices of shape {indices.shape} and type {indices.dtype} do not fit {count} "
        f"files; they must be integers of shape ({count}, {spec.num_tokens}), or as many rows as "
        "the images have tiles"
    )


def _describe_tilings(tilings: Sequence[Tiling] | None) -> dict[str, Any]:
    if not tilings:
        return {}
    first, sizes = tilings[0], [list(tiling.image_size) for tiling in tilings]
    return {TILES: {"size": list(first.tile_size), "overlap": first.overlap, "images": sizes}}


def _read_tilings(path: Path, described: Any) -> list[Tiling]:
    """Return the tiling of each image.

    Raises:
        DataError: If it describes none, or images of a size that none has.
    """
    try:
        tile, overlap = as_size(described["size"]), described["overlap"]
        sizes = [as_size(size) for size in described["images"]]
        if type(overlap) is not int or not sizes:
            raise InputError("there is no image, or no overlap")
        if max(map(math.prod, [tile, *sizes])) > MAX_PIXELS:
            raise InputError(f"an image, or a tile, has more than {MAX_PIXELS:,} pixels")
        return [Tiling(size, tile, overlap) for size in sizes]
    except (KeyError, TypeError, InputError) as error:
        raise DataError(
            f"{path} does not say how images are cut into tiles ({one_line(str(error))[:SHOWN]}); "
            "'spectok encode' writes such a file"
        ) from error


def _read_npz(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_npz(path, DataError)
    for key in {"token_spec", TILES, WEIGHTS} & {"token_spec", *content}:
        content[key] = parse_json(str(content.get(key)), f"{key} of {path}", DataError)
    return content


def _as_name(name: Any) -> str:
    """Return the name of an image, from which a file can be named."""
    text = name if isinstance(name, str) else None
    if text is None or re.search("[\0\ud800-\udbff]", text):
        raise ValueError(f"the name {shown(name)} is not a file's")
    return text


def _summary(spec: TokenSpec) -> str:
    return f"{spec.num_tokens} tokens of up to {spec.max_vocab_size} values in {spec.order} order"
