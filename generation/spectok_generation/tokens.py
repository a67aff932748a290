"""The token cache: the tokens of a data set on disk, a few bits per index.

A cache is a directory::

    header.json       token layout, counts, and fingerprints of tokenizer and data
    tokens.bin        one row of ceil(T * width / 8) bytes per image; index t is bits
                      [t * width, (t + 1) * width) of its row, least significant bit first
    labels.bin        int64 class of each image, if the data has classes
    captions.jsonl    a JSON list of its captions per image, if the data has captions (format 1,
                      and still where every image has one caption: a JSON string)

``width`` is the number of bits that the largest vocabulary needs. Rows are whole bytes, so any row
is one seek away. A cache is written under another name and renamed once complete. The header holds
the hash of each other file, which is compared when a cache is opened, once per process.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from pydantic import Field
from torch.utils.data import Dataset

from spectok import TokenSpec
from spectok.data.augment import caption_turn
from spectok.errors import CheckpointError, ConfigError, TokenError
from spectok.places import home
from spectok.reading import parse_json, read_json, read_text
from spectok.recipes.schema import section_model, validate_section
from spectok_generation.records import check_hashes, check_record, describe_record, same_tokenizer

FORMATS = (1, 2)
"""With one caption per image, and with several."""
MAX_CAPTION_BYTES = 1 << 34
HEADER, TOKENS, LABELS, CAPTIONS = "header.json", "tokens.bin", "labels.bin", "captions.jsonl"


@dataclass(frozen=True)
class CacheHeader:
    """Contents of ``header.json``.

    Args:
        token_spec: Layout of the tokens.
        count: Number of rows.
        tokenizer: Record of the tokenizer; see :func:`spectok_generation.records.tokenizer_record`.
        data: Fingerprint of the data: its pixels, preprocessing, augmentation and copies.
        num_classes: Number of classes; 0 without labels.
        class_names: Name of each class, if classes have names.
        has_captions: Whether rows have captions.
        copies: Rows of each image: row ``c * (count / copies) + i`` is copy c of image i.
        format: Version of the file layout.
        hashes: SHA-256 of each of the other files; None in caches of earlier versions.
    """

    token_spec: dict[str, Any]
    count: Annotated[int, Field(ge=0)]
    tokenizer: dict[str, Any]
    data: str
    num_classes: Annotated[int, Field(ge=0)] = 0
    class_names: list[str] | None = None
    has_captions: bool = False
    copies: Annotated[int, Field(ge=1)] = 1
    format: int = FORMATS[0]
    hashes: dict[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and the data that the tokens were made from."""
        return f"{self.tokenizer.get('fingerprint')} {self.data}"


class TokenCache(Dataset[dict[str, Any]]):
    """The tokens of a data set, memory-mapped from disk.

    An item is ``{"indices": int64 (T,), "index": int}``, plus ``"label": int`` if the data has
    labels, and ``"caption": str`` with its place ``"caption_number": int`` among the captions of
    the image if it has captions: the first one, and after :meth:`set_epoch` each in its turn.

    Args:
        directory: A finished cache.
        seed: Seed of the order in which the captions of an image take turns.

    Raises:
        CheckpointError: If it is missing or damaged.
    """

    in_memory = True  # mapped, and small: reading costs next to nothing

    def __init__(self, directory: str | os.PathLike[str], seed: int = 0):
        self.directory = Path(home(directory))
        self._seed, self._epoch = seed, None
        self.header = read_header(self.directory)
        self.token_spec = TokenSpec.from_dict(self.header.token_spec)
        self._limits = np.array(self.token_spec.vocab_sizes)
        self._width = index_width(self.token_spec)
        row_bytes = -(-self.token_spec.num_tokens * self._width // 8)
        self._rows = self._map(TOKENS, np.uint8, (self.header.count, row_bytes))
        self.labels = None
        if self.header.num_classes:
            self.labels = self._map(LABELS, np.dtype("<i8"), (self.header.count,))
            self._check_labels(self.labels)
        self.captions: list[tuple[str, ...]] | None = None
        if self.header.has_captions:
            self.captions = self._read_captions()
        check_hashes(self.directory, self.header.hashes)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return self.header.num_classes

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and the data that the tokens were made from."""
        return self.header.fingerprint

    def check_tokenizer(self, record: dict[str, Any]) -> None:
        """Check that a tokenizer with these weights made the tokens.

        Args:
            record: Record of the tokenizer that the tokens should come from.

        Raises:
            CheckpointError: If not; names both tokenizers.
        """
        made_by = self.header.tokenizer
        if not same_tokenizer(made_by, record):
            raise CheckpointError(
                f"the tokens in {self.directory} were made by {describe_record(made_by)}, not by "
                f"{describe_record(record)}; extract them again into another directory"
            )

    def indices(self, rows: slice | Int[np.ndarray, "n"]) -> Int[np.ndarray, "n t"]:
        """Return the int64 tokens of several rows at once.

        Raises:
            CheckpointError: If one is outside its vocabulary.
        """
        found = unpack(self._rows[rows], self.token_spec.num_tokens, self._width)
        wrong = found >= self._limits
        if wrong.any():
            row, place = np.argwhere(wrong)[0]
            raise CheckpointError(
                f"{self.directory / TOKENS} is damaged: index {found[row, place]} at place {place} "
                f"is outside 0..{self._limits[place] - 1}; {self._again}"
            )
        return found

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; each caption of an image is carried once per round.

        A round is as many rows of the image as it has captions, whether they are its copies in one
        epoch or come from several epochs.
        """
        self._epoch = epoch

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return several items, unpacked together; ``DataLoader`` calls this for a batch."""
        rows = torch.from_numpy(self.indices(np.asarray(numbers)))
        items: list[dict[str, Any]] = []
        for row, number in zip(rows, numbers):
            item: dict[str, Any] = {"indices": row, "index": number}
            if self.labels is not None:
                item["label"] = int(self.labels[number])
            if self.captions is not None:
                captions = self.captions[number]
                turn = self._turn(number, len(captions))
                item["caption"] = captions[turn] if captions else ""
                item["caption_number"] = turn
            items.append(item)
        return items

    @property
    def _again(self) -> str:
        return f"delete {self.directory} and extract the tokens again"

    def _check_labels(self, labels: np.ndarray) -> None:
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise CheckpointError(
                f"{self.directory / LABELS} is damaged: label {outside[0]} is outside "
                f"0..{self.num_classes - 1}; {self._again}"
            )

    def _read_captions(self) -> list[tuple[str, ...]]:
        path = self.directory / CAPTIONS
        lines = read_text(path, CheckpointError, MAX_CAPTION_BYTES).split("\n")[:-1]
        found = [parse_json(line, str(path), CheckpointError) for line in lines]
        captions = [tuple(c) if isinstance(c, list) else (c,) for c in found]
        texts = all(isinstance(caption, str) for several in captions for caption in several)
        if len(captions) != self.header.count or not texts:
            raise CheckpointError(
                f"{path} is damaged: it does not hold the captions of {self.header.count} images; "
                f"{self._again}"
            )
        return captions

    def _turn(self, row: int, count: int) -> int:
        """Return which of its captions a row carries in this epoch."""
        if self._epoch is None or count == 0:
            return 0
        copy, image = divmod(row, self.header.count // self.header.copies)
        return caption_turn(count, self._seed, self._epoch * self.header.copies + copy, image)

    def _map(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        path = self.directory / name
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        found = path.stat().st_size if os.path.isfile(path) else -1
        if found != expected:
            raise CheckpointError(
                f"{path} is damaged: {max(found, 0)} bytes instead of {expected}; {self._again}"
            )
        if not expected:
            return np.empty(shape, dtype)  # nothing to map
        return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def read_header(directory: Path) -> CacheHeader:
    """Read the header of a cache.

    Raises:
        CheckpointError: If the directory does not hold a finished cache of this format.
    """
    path = directory / HEADER
    if not os.path.isfile(path):
        raise CheckpointError(f"{directory} holds no token cache (no {HEADER}); extract one first")
    content = read_json(path, CheckpointError)
    try:
        fields = validate_section(section_model(CacheHeader), content, "").model_dump()
        TokenSpec.from_dict(fields["token_spec"])
    except (ConfigError, TokenError) as error:
        reason = error.problems[0]
        raise CheckpointError(f"{path} is not the header of a token cache: {reason}") from error
    header = CacheHeader(**fields)
    check_record(header.tokenizer, f"tokenizer of {path}")
    if header.format not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise CheckpointError(f"{path} has format {header.format}; this version reads {known}")
    if header.count % header.copies:
        raise CheckpointError(
            f"{path} has {header.count} rows, no multiple of {header.copies} copies"
        )
    if header.class_names is not None and len(header.class_names) != header.num_classes:
        raise CheckpointError(
            f"{path} names {len(header.class_names)} classes of {header.num_classes}"
        )
    return header


def index_width(spec: TokenSpec) -> int:
    """Return the bits per index: enough for the largest vocabulary, at least 1."""
    return max(1, (spec.max_vocab_size - 1).bit_length())


def pack(indices: Int[np.ndarray, "n t"], width: int) -> UInt8[np.ndarray, "n r"]:
    """Pack indices into rows of bytes, ``width`` bits each, least significant bit first."""
    bits = (indices[:, :, None] >> np.arange(width)) & 1  # (n, t, width)
    return np.packbits(bits.astype(np.uint8).reshape(len(indices), -1), axis=1, bitorder="little")


def unpack(rows: UInt8[np.ndarray, "n r"], count: int, width: int) -> Int[np.ndarray, "n t"]:
    """Undo :func:`pack`.

    Args:
        rows: Packed rows.
        count: Indices T in each row.
        width: Bits per index.
    """
    bits = np.unpackbits(rows, axis=1, bitorder="little", count=count * width)
    return bits.reshape(len(rows), count, width) @ (1 << np.arange(width, dtype=np.int64))
