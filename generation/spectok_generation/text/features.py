"""The text features of the captions of a data set, computed once per distinct caption.

They are stored in a directory::

    header.json       fingerprints of encoder and captions, and the sizes
    features.bin      float16 vectors of all tokens of all distinct captions, concatenated
    texts.npz         where the tokens of each distinct caption end, the captions of all rows one
                      after another, and where each row's begin

Half precision is enough for a prior, and padding is not stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset, default_collate

from spectok.data.rows import Captions
from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.processes import on_main
from spectok.reading import check_regular, read_json, read_npz, sha256_of_file
from spectok.recipes.schema import Section, validate_section
from spectok_generation.conditions import TextFeatures
from spectok_generation.records import check_hashes, check_record
from spectok_generation.text.encoder import TextEncoder

NO_CAPTIONS = "the data has no captions to learn from; see docs/data.md for their forms"
HEADER, FEATURES, TEXTS = "header.json", "features.bin", "texts.npz"
CHUNK = 256
"""Captions encoded at a time, between updates of the progress bar."""


class Header(Section):
    """Contents of ``header.json``.

    Args:
        encoder: Record of the encoder.
        captions: Hash of all captions.
        width: Length of a vector.
        hashes: SHA-256 of each of the other files; None in those of earlier versions.
    """

    encoder: dict[str, Any]
    captions: str
    width: int = Field(ge=1)
    hashes: dict[str, str] | None = None


class CaptionFeatures:
    """Features of the captions of a data set, memory-mapped from disk.

    Args:
        directory: Directory that :func:`encode_captions` wrote.

    Raises:
        CheckpointError: If it holds no features, or they are damaged.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        path = Path(directory)
        self.header = read_header(path)
        self._ends, self._texts, self._first = _read_texts(path / TEXTS)
        shape = (int(self._ends[-1]), self.header["width"])
        check_regular(path / FEATURES, CheckpointError)
        expected, found = 2 * shape[0] * shape[1], (path / FEATURES).stat().st_size
        if found != expected:
            raise CheckpointError(
                f"{path / FEATURES} is damaged: {found} bytes instead of {expected}; delete {path}"
            )
        check_hashes(path, self.header["hashes"])
        self._features = np.memmap(path / FEATURES, dtype="<f2", mode="r", shape=shape)

    @property
    def record(self) -> dict[str, Any]:
        """Record of the encoder that computed them; see :attr:`TextEncoder.record`."""
        return self.header["encoder"]

    def rows(self, rows: Sequence[int], numbers: Sequence[int] | None = None) -> TextFeatures:
        """Return the float32 features of several rows, as long as their longest caption.

        Args:
            rows: The rows.
            numbers: Which of its captions each row is to have; None: the first of each.
        """
        places = self._first[np.asarray(rows)]
        texts = self._texts[places if numbers is None else places + np.asarray(numbers)]
        ends = self._ends[texts + 1]
        starts = self._ends[texts]
        mask = np.arange((ends - starts).max()) < (ends - starts)[:, None]  # (b, l)
        features = np.zeros((*mask.shape, self.header["width"]), dtype=np.float32)
        for row, (start, end) in enumerate(zip(starts, ends)):
            features[row, : end - start] = self._features[start:end]
        return TextFeatures(torch.from_numpy(features), torch.from_numpy(mask))

    def __len__(self) -> int:
        return len(self._first)


class Captioned(Dataset[dict[str, Any]]):
    """A data set whose batches hold the features of their items' captions as ``"text"``.

    Args:
        dataset: Data set whose items hold their row as ``"index"``, and which of the captions of
            that row they carry as ``"caption_number"``.
        features: Features of all captions of its rows.
    """

    def __init__(self, dataset: Any, features: CaptionFeatures):
        self.dataset, self.features = dataset, features

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the data set, if it has epochs."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return several items, at once if the data set can."""
        read_several = getattr(self.dataset, "__getitems__", None)
        return read_several(indices) if read_several else [self.dataset[i] for i in indices]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch, its texts padded to the longest of them."""
        rows, numbers = [i["index"] for i in items], [i["caption_number"] for i in items]
        return default_collate(items) | {"text": self.features.rows(rows, numbers)}


def encode_captions(
    encoder: TextEncoder,
    captions: Sequence[Captions] | None,
    directory: str | os.PathLike[str],
    on_captions: Callable[[int], None] | None = None,
) -> CaptionFeatures:
    """Encode the captions of a data set into a directory, each distinct one once.

    If the directory already holds features of the same encoder and captions, they are reused. The
    main process encodes; the others wait.

    Args:
        encoder: Text encoder on the device to run on.
        captions: All captions of each row.
        directory: Directory of the features.
        on_captions: Called with the number of distinct captions encoded since the last call.

    Raises:
        DataError: If captions are missing, or one is empty.
        CheckpointError: If the directory holds other features, or writing fails.
    """
    if not captions:
        raise DataError(NO_CAPTIONS)
    told = [bool(texts) and all(text.strip() for text in texts) for texts in captions]
    if not all(told):
        raise DataError(
            f"image {told.index(False)} has no caption, or an empty one ({told.count(False)} such "
            f"images); write them"
        )
    target = Path(directory)
    header = {
        "encoder": encoder.record,
        "captions": hash_captions(captions),
        "width": encoder.width,
    }

    def prepare() -> None:
        if _is_finished(target, header):
            return
        try:
            _write(encoder, captions, target, header, on_captions)
        except OSError as error:
            raise CheckpointError(f"cannot write text features to {target}: {error}") from error

    on_main(prepare)
    return CaptionFeatures(target)


def _is_finished(target: Path, header: dict[str, Any]) -> bool:
    """Return whether the target already holds the planned features.

    Raises:
        CheckpointError: If it holds others.
    """
    if not os.path.isfile(target / HEADER):
        return False
    found = read_header(target)
    same_encoder = found["encoder"].get("fingerprint") == header["encoder"]["fingerprint"]
    if not same_encoder or found["captions"] != header["captions"]:
        raise CheckpointError(
            f"{target} already holds the features of other captions or of another encoder "
            f"({found['encoder'].get('path')}); choose another directory or delete it"
        )
    return True


def read_header(directory: Path) -> dict[str, Any]:
    """Read the header of a directory of features.

    Raises:
        CheckpointError: If the directory holds no features.
    """
    try:
        header = validate_section(Header, read_json(directory / HEADER, CheckpointError), "")
    except (CheckpointError, ConfigError) as error:
        reason = error.problems[0]
        raise CheckpointError(f"{directory} holds no text features: {reason}") from error
    check_record(header.encoder, f"encoder of {directory / HEADER}")
    return header.model_dump()


def _read_texts(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each caption's tokens end, the captions of all rows, and where a row's begin.

    The ends begin with 0. Earlier versions did not write where rows begin: each had one caption.
    """
    arrays = read_npz(path, CheckpointError)
    ends, rows = (arrays.get(name, np.empty(0)) for name in ("ends", "rows"))
    first = arrays.get("first", np.arange(rows.size))
    whole = all(
        array.ndim == 1 and array.dtype.kind in "iu" and len(array) for array in (ends, rows, first)
    )
    if (
        not whole
        or ends[0] != 0
        or (ends[1:] <= ends[:-1]).any()
        or rows.min() < 0
        or rows.max() >= len(ends) - 1
        or first[0] != 0
        or (first[1:] <= first[:-1]).any()
        or first[-1] >= len(rows)
    ):
        raise CheckpointError(f"{path} is damaged; delete {path.parent}")
    return ends, rows, first


def hash_captions(captions: Sequence[Captions]) -> str:
    """Return a hash of all captions, in order."""
    several = any(len(texts) > 1 for texts in captions)
    content = [list(texts) if several else texts[0] for texts in captions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write(
    encoder: TextEncoder,
    captions: Sequence[Captions],
    target: Path,
    header: dict[str, Any],
    on_captions: Callable[[int], None] | None,
) -> None:
    """Write beside the target and rename, so that features are complete or absent."""
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    different = list(dict.fromkeys(chain.from_iterable(captions)))
    place = {caption: number for number, caption in enumerate(different)}
    lengths: list[int] = [0]
    with (temporary / FEATURES).open("wb") as file:
        for start in range(0, len(different), CHUNK):
            text = encoder(different[start : start + CHUNK])
            file.write(text.features[text.mask].cpu().numpy().astype("<f2").tobytes())
            lengths += text.mask.sum(1).tolist()
            if on_captions is not None:
                on_captions(len(text))
    rows = np.array([place[caption] for caption in chain.from_iterable(captions)])
    first = np.cumsum([0, *(len(texts) for texts in captions[:-1])])
    np.savez(temporary / TEXTS, ends=np.cumsum(lengths), rows=rows, first=first)
    hashes = {name: sha256_of_file(temporary / name, DataError) for name in (FEATURES, TEXTS)}
    header = header | {"hashes": hashes}
    (temporary / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target)
