"""A hash of the images that a tokenizer was measured on, as they were decoded."""

from __future__ import annotations

import hashlib

from torch import Tensor

from spectok.images import to_uint8
from spectok.metrics import SetMetric

REFERENCE_IMAGES = "reference_images"
"""Name of the hash in the results of an evaluation."""


class ImageHash(SetMetric):
    """A BLAKE2 hash of all original images in their order, rounded to 8 bits.

    It does not depend on how the images are split into batches. The fingerprint of a data set that
    does not fit into memory knows only names and sizes of files; this hash knows every pixel.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, images: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Add the originals of a batch."""
        self._digest.update(to_uint8(images).cpu().contiguous().numpy().data)

    def result(self) -> str:
        """Return the hash, 32 hexadecimal digits."""
        return self._digest.hexdigest()
