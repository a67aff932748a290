"""The text features of the captions of a data set, computed once per distinct caption.

They are stored in a directory::

    header.json       fingerprints of encoder and captions, and the sizes
    features.bin      float16 vectors of all tokens of all distinct captions, concatenated
    texts.npz         where the tokens of each caption end, and the caption of each row

Half precision is enough for a prior, and padding is not stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from spectok.errors import CheckpointError, DataError
from spectok.processes import on_main
from spectok_generation.conditions import TextFeatures
from spectok_generation.text.encoder import TextEncoder

NO_CAPTIONS = "the data has no captions to learn from; see docs/data.md for their forms"
HEADER, FEATURES, TEXTS = "header.json", "features.bin", "texts.npz"
CHUNK = 256
"""Captions encoded at a time, between updates of the progress bar."""


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
        with np.load(path / TEXTS) as texts:
            self._ends, self._texts = texts["ends"], texts["rows"]
        shape = (int(self._ends[-1]), int(self.header["width"]))
        expected, found = 2 * shape[0] * shape[1], (path / FEATURES).stat().st_size
        if found != expected:
            raise CheckpointError(
                f"{path / FEATURES} is damaged: {found} bytes instead of {expected}; delete {path}"
            )
        self._features = np.memmap(path / FEATURES, dtype="<f2", mode="r", shape=shape)

    @property
    def record(self) -> dict[str, Any]:
        """Record of the encoder that computed them; see :attr:`TextEncoder.record`."""
        return self.header["encoder"]

    def rows(self, rows: Sequence[int]) -> TextFeatures:
        """Return the float32 features of several rows, as long as their longest caption."""
        texts = self._texts[np.asarray(rows)]
        ends = self._ends[texts + 1]
        starts = self._ends[texts]
        mask = np.arange((ends - starts).max()) < (ends - starts)[:, None]  # (b, l)
        features = np.zeros((*mask.shape, self.header["width"]), dtype=np.float32)
        for row, (start, end) in enumerate(zip(starts, ends)):
            features[row, : end - start] = self._features[start:end]
        return TextFeatures(torch.from_numpy(features), torch.from_numpy(mask))

    def __len__(self) -> int:
        return len(self._texts)


class Captioned(Dataset[dict[str, Any]]):
    """A data set whose batches hold the text features of their rows as ``"text"``.

    Args:
        dataset: Data set whose items hold their row as ``"index"``.
        features: Features of its captions.
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

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch, its texts padded to the longest of them."""
        return default_collate(items) | {"text": self.features.rows([i["index"] for i in items])}


def encode_captions(
    encoder: TextEncoder,
    captions: Sequence[str] | None,
    directory: str | os.PathLike[str],
    on_captions: Callable[[int], None] | None = None,
) -> CaptionFeatures:
    """Encode the captions of a data set into a directory, each distinct one once.

    If the directory already holds features of the same encoder and captions, they are reused. The
    main process encodes; the others wait.

    Args:
        encoder: Text encoder on the device to run on.
        captions: One per row.
        directory: Directory of the features.
        on_captions: Called with the number of distinct captions encoded since the last call.

    Raises:
        DataError: If captions are missing, or one is empty.
        CheckpointError: If the directory holds other features, or writing fails.
    """
    if not captions:
        raise DataError(NO_CAPTIONS)
    blank = [row for row, caption in enumerate(captions) if not caption.strip()]
    if blank:
        raise DataError(f"image {blank[0]} has an empty caption ({len(blank)} in all); write them")
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
    if not (target / HEADER).is_file():
        return False
    found = read_header(target)
    same_encoder = found["encoder"]["fingerprint"] == header["encoder"]["fingerprint"]
    if not same_encoder or found["captions"] != header["captions"]:
        raise CheckpointError(
            f"{target} already holds the features of other captions or of another encoder "
            f"({found['encoder']['path']}); choose another directory or delete it"
        )
    return True


def read_header(directory: Path) -> dict[str, Any]:
    """Read the header of a directory of features.

    Raises:
        CheckpointError: If the directory holds no features.
    """
    try:
        return json.loads((directory / HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} holds no text features: {error}") from error


def hash_captions(captions: Sequence[str]) -> str:
    """Return a hash of all captions, in order."""
    return hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()


def _write(
    encoder: TextEncoder,
    captions: Sequence[str],
    target: Path,
    header: dict[str, Any],
    on_captions: Callable[[int], None] | None,
) -> None:
    """Write beside the target and rename, so that features are complete or absent."""
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    different = list(dict.fromkeys(captions))
    place = {caption: number for number, caption in enumerate(different)}
    lengths: list[int] = [0]
    with (temporary / FEATURES).open("wb") as file:
        for start in range(0, len(different), CHUNK):
            text = encoder(different[start : start + CHUNK])
            file.write(text.features[text.mask].cpu().numpy().astype("<f2").tobytes())
            lengths += text.mask.sum(1).tolist()
            if on_captions is not None:
                on_captions(len(text))
    rows = np.array([place[caption] for caption in captions])
    np.savez(temporary / TEXTS, ends=np.cumsum(lengths), rows=rows)
    (temporary / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target)
