"""The data set that training and evaluation read."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import Dataset

from spectok.data.augment import Augmentation, caption_turn, generator_for
from spectok.data.checks import Checks, decode_rows, inspect_rows, make_report
from spectok.data.decode import UnreadableImage, open_image
from spectok.data.preprocessing import Box, Preprocessing
from spectok.data.report import describe_problems
from spectok.data.rows import Captions, Rows
from spectok.errors import DataError, one_line
from spectok.images import to_float

MEMORY_LIMIT = 1 << 30
"""Decoded images are kept in memory if they take no more bytes than this."""


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of one shape, with labels and captions if the data has them.

    An item is ``{"images": float32 (C, H, W) in [-1, 1], "index": int}``, with ``"label": int`` if
    the data has labels, and with ``"caption": str`` and its place ``"caption_number": int`` among
    the captions of the image if it has captions. Everything random about an item (its
    augmentation, and the order of several captions) depends on (seed, epoch, index) alone. If an
    image has several captions, training items carry each of them once in as many epochs; any other
    item carries the first. :meth:`captions_of` returns all of them.

    Args:
        rows: The images, not yet decoded.
        preprocessing: How they are brought to one shape.
        name: What the report calls the data.
        augmentation: Random changes for training. None: nothing about an item is random.
        seed: Seed of the augmentation and of the choice of captions.
        skip_unreadable: Leave damaged images out instead of raising.
        memory_limit: Decode all images once and keep them, if they fit in this many bytes.

    Attributes:
        report: What is in the data, and what could not be read.
        fingerprint: Hash of images, labels, captions and preprocessing.

    Raises:
        DataError: If images cannot be read and ``skip_unreadable`` is off, or none is left.
    """

    def __init__(
        self,
        rows: Rows,
        preprocessing: Preprocessing,
        *,
        name: str = "images",
        augmentation: Augmentation | None = None,
        seed: int = 0,
        skip_unreadable: bool = False,
        memory_limit: int = MEMORY_LIMIT,
    ):
        fits = len(rows) * int(np.prod(preprocessing.image_shape)) <= memory_limit
        checks = decode_rows(rows, preprocessing) if fits else inspect_rows(rows, preprocessing)
        self._rows = _readable_rows(rows, checks, name, skip_unreadable)
        self._pixels = checks.pixels
        self._preprocessing, self._augmentation = preprocessing, augmentation
        self._seed, self._epoch, self._skip_unreadable = seed, 0, skip_unreadable
        self.report = make_report(self._rows, checks, name, preprocessing)
        self.fingerprint = _fingerprint(self._rows, checks, preprocessing)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._preprocessing.image_shape

    @property
    def interior(self) -> Box | None:
        """(top, left, height, width) of the image inside an added border; None: no border."""
        return self._preprocessing.interior

    @property
    def augments(self) -> bool:
        """Whether images change at random from epoch to epoch."""
        return bool(self._augmentation)

    @property
    def in_memory(self) -> bool:
        """Whether reading an item costs next to nothing: pixels are held, and stay as they are."""
        return self._pixels is not None and not self.augments

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything that decides the pixels before augmentation, ready for JSON."""
        return self._preprocessing.to_dict()

    @property
    def labels(self) -> np.ndarray | None:
        """int64 class of each image, shape (N,); None without labels."""
        return self._rows.labels

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return self._rows.count_classes()

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class, if classes have names."""
        return self._rows.class_names

    @property
    def has_captions(self) -> bool:
        """Whether items carry captions."""
        return self._rows.captions is not None

    def captions_of(self, index: int) -> Captions:
        """Return all captions of an image."""
        return self._rows.captions[index] if self._rows.captions is not None else ()

    def name_of(self, index: int) -> str:
        """Return the file name of an image, or its row in the data."""
        return self._rows.name(index)

    def uint8_images(self) -> UInt8[np.ndarray, "n c h w"]:
        """Return all images without augmentation; read-only, shared with the data set.

        Raises:
            DataError: If they do not fit in :data:`MEMORY_LIMIT`.
        """
        if self._pixels is not None:
            return self._pixels
        num_bytes = len(self) * int(np.prod(self.image_shape))
        if num_bytes > MEMORY_LIMIT:
            raise DataError(
                f"{len(self):,} images take {num_bytes / 2**30:.1f} GiB, above the limit of "
                f"{MEMORY_LIMIT / 2**30:.0f} GiB; set data.limit or read items one by one"
            )
        return np.stack([self._read(index) for index in range(len(self))])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; each has its own augmentation and its turn of the captions."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} images")
        index = int(index)
        pixels, captions = self._read(index), self.captions_of(index)
        number = 0
        if self._augmentation is not None:
            if self._augmentation:
                pixels = self._augmentation(pixels, generator_for(self._seed, self._epoch, index))
            if captions:
                number = caption_turn(len(captions), self._seed, self._epoch, index)
        own = torch.from_numpy(pixels) if pixels.flags.writeable else torch.tensor(pixels)
        item: dict[str, Any] = {"images": to_float(own), "index": index}
        if self._rows.labels is not None:
            item["label"] = int(self._rows.labels[index])
        if self._rows.captions is not None:
            item["caption"] = captions[number] if captions else ""
            item["caption_number"] = number
        return item

    def _read(self, index: int) -> UInt8[np.ndarray, "c h w"]:
        """Return one image without augmentation."""
        if self._pixels is not None:
            return self._pixels[index]
        for place in (*range(index, len(self)), *range(index)):
            try:
                return self._preprocessing(open_image(self._rows.images[place]))
            except UnreadableImage as error:
                self._raise_or_warn(place, error)
        raise DataError("no image can be read any more; check that the files are still there")

    def _raise_or_warn(self, index: int, error: UnreadableImage) -> None:
        """Raise for damage that the header did not show, or warn that the next image is used."""
        name = one_line(self.name_of(index))
        if not self._skip_unreadable:
            raise DataError(
                f"image {name} cannot be read ({error}); repair or remove it, "
                "or set data.skip_unreadable to true"
            ) from error
        warnings.warn(f"image {name} cannot be read ({error}); using the next", stacklevel=4)


def _readable_rows(rows: Rows, checks: Checks, name: str, skip_unreadable: bool) -> Rows:
    """Return the rows that can be read, or raise naming those that cannot."""
    problems = [*rows.problems, *checks.problems]
    if problems and not skip_unreadable:
        raise DataError(
            f"data {name} has unreadable files, {describe_problems(problems)}; repair or remove "
            "them, or set data.skip_unreadable to true"
        )
    if not checks.kept:
        found = describe_problems(problems) or "it is empty"
        raise DataError(f"data {name} has no readable image, {found}; add images")
    return rows if len(checks.kept) == len(rows) else rows.select(checks.kept)


def _fingerprint(rows: Rows, checks: Checks, preprocessing: Preprocessing) -> str:
    """Return a hash of the data and its preprocessing.

    Images in memory are hashed by their pixels, others by name, encoded size and some bytes of
    their start, middle and end: hashing their contents would take as long as an epoch.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(preprocessing.to_dict(), sort_keys=True).encode())
    if checks.pixels is not None:
        digest.update(np.ascontiguousarray(checks.pixels).data)
    else:
        names = [rows.name(index) for index in range(len(rows))]
        digest.update(json.dumps([names, checks.encoded]).encode())
    labels = rows.labels.tolist() if rows.labels is not None else None
    captions = [list(texts) for texts in rows.captions] if rows.captions is not None else None
    digest.update(json.dumps([labels, captions]).encode())
    return digest.hexdigest()
