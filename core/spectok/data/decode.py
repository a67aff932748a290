"""Open image files of any format and mode, or say why one cannot be opened."""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from spectok.errors import DataError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"
_PART = 4096
_LONGEST_REASON = 200
MAX_8_BIT, MAX_16_BIT = 255, 65535
_EXPANSION, _SMALLEST_BOUND = 3000, 32 << 20
"""No usual format stores an image in less than a 3,000th, and 32 MiB are taken in any case."""

# Pillow refuses what is twice as large as what it warns of; below that, the image is only large.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Its remarks on damaged files say less than the error that follows.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnreadableImage(DataError):
    """One image cannot be opened; the message is the reason, in a few words."""


def open_image(reference: Any) -> Image.Image:
    """Return the decoded image behind a reference.

    Args:
        reference: A path, encoded bytes, ``{"bytes", "path"}``, a uint8 array (H, W) or (H, W, C),
            an object with ``read_bytes()`` or a PIL image.

    Raises:
        UnreadableImage: If it is missing or damaged.
    """
    if isinstance(reference, Image.Image):
        return reference
    if isinstance(reference, np.ndarray):
        return Image.fromarray(reference)
    with _decoding(), _opened(reference) as stream:
        image = _open(stream)
        image.load()
    return image


class Header(NamedTuple):
    """What is known of an image that was not decoded.

    Attributes:
        size: (width, height).
        mode: Pillow's name of its pixels' type.
        num_bytes: Size of the encoded data.
        sample: Checksum of bytes of its start, its middle and its end.
    """

    size: tuple[int, int]
    mode: str
    num_bytes: int
    sample: int


def inspect_image(reference: Any) -> Header:
    """Check an image by its header and its end, without decoding it where those are as usual.

    A JPEG or PNG file without an end mark near its end is cut short, or has something appended, as
    some cameras do; decoding it tells which.

    Raises:
        UnreadableImage: If it is missing, not an image, or cut short.
    """
    if isinstance(reference, np.ndarray | Image.Image):
        image = open_image(reference)
        pixels = np.ascontiguousarray(image)
        num_bytes = image.width * image.height * len(image.getbands())
        return Header(image.size, image.mode, num_bytes, zlib.crc32(pixels.data))
    with _decoding(), _opened(reference) as stream:
        image = _open(stream)
        size, mode = image.size, image.mode
        start, middle, end, num_bytes = _parts(stream)
        if (start.startswith(_JPEG_START) and _JPEG_END not in end) or (
            start.startswith(_PNG_START) and _PNG_END not in end
        ):
            stream.seek(0)
            _open(stream).load()
    return Header(size, mode, num_bytes, zlib.crc32(start + middle + end))


def is_deep(mode: str) -> bool:
    """Return whether images of a mode hold more than 8 bits, or floating-point numbers."""
    return mode == "F" or mode.startswith("I")


def value_range(image: Image.Image) -> tuple[float, float]:
    """Return the least and the greatest value of a grey image, or of all channels of another."""
    values = np.asarray(image if is_deep(image.mode) else to_channels(image, 3))
    return float(values.min()), float(values.max())


def to_channels(image: Image.Image, channels: int, max_value: float | None = None) -> Image.Image:
    """Return the image upright, as 8-bit grey (1 channel) or RGB (3 channels).

    Transparent images are composited on white, and the orientation recorded by the camera is
    applied.

    Args:
        image: Of any mode.
        channels: 1 or 3.
        max_value: What is white in grey images of more than 8 bits or of floating-point numbers,
            and, if it is below 255, in images of 8 bits. None: 65,535 (16-bit grey keeps its upper
            8 bits) and 255, and floating-point is refused.

    Raises:
        UnreadableImage: If the pixels are floating-point and ``max_value`` is not given, or not
            numbers; or if the mode or the record of the orientation cannot be understood.
    """
    with _decoding():
        image = ImageOps.exif_transpose(image)
        if is_deep(image.mode):
            image = _to_8_bits(image, max_value)
        elif max_value is not None and max_value < MAX_8_BIT and image.mode != "1":
            image = _stretch_8_bits(image, max_value)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            image = Image.alpha_composite(white, rgba)
        return image.convert("L" if channels == 1 else "RGB")


def check_mode(mode: str, max_value: float | None) -> None:
    """Refuse floating-point pixels of which nobody said what is white."""
    if mode == "F" and max_value is None:
        raise UnreadableImage("floating-point pixels; set data.max_value to what is white in them")


def _to_8_bits(image: Image.Image, max_value: float | None) -> Image.Image:
    """Return a grey image of more bits with 8; see :func:`to_channels`."""
    check_mode(image.mode, max_value)
    values = np.asarray(image)
    if max_value is None:
        return Image.fromarray((values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    scaled = values.astype(np.float64) * (255 / max_value)
    if np.isnan(scaled).any():
        raise UnreadableImage("some pixels are NaN")
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def _stretch_8_bits(image: Image.Image, max_value: float) -> Image.Image:
    """Return an image of 8 bits in which ``max_value`` has become 255; its opacity is kept."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    values = (np.arange(256) * (MAX_8_BIT / max_value)).clip(0, MAX_8_BIT).round().astype(int)
    tables = [range(256) if band == "A" else values for band in image.getbands()]
    return image.point([int(value) for table in tables for value in table])


@contextmanager
def _decoding() -> Iterator[None]:
    """Raise whatever Pillow's decoders raise on damaged files as an unreadable image."""
    try:
        yield
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def _open(stream: BinaryIO) -> Image.Image:
    """Return an image of which only the header is read."""
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    Image.init()
    # PostScript is not decoded, but run by another program
    image = Image.open(stream, formats=[name for name in Image.ID if name != "EPS"])
    claimed = image.width * image.height * len(image.getbands())
    if not 0 < claimed <= max(_SMALLEST_BOUND, _EXPANSION * num_bytes):
        raise UnreadableImage(
            f"it claims {image.width}×{image.height} pixels in a file of {num_bytes:,} bytes"
        )
    return image


def _opened(reference: Any) -> BinaryIO:
    """Return a readable stream for a reference to encoded data; the caller closes it."""
    if isinstance(reference, dict):
        reference = _bytes_or_path(reference)
    if reference is None:
        raise UnreadableImage("there is no image in this row")
    if isinstance(reference, str | os.PathLike):
        if not stat.S_ISREG(os.stat(reference).st_mode):  # reading it might never end
            raise UnreadableImage("a directory, device or pipe, not a file")
        return _File(io.FileIO(reference))
    return io.BytesIO(reference if isinstance(reference, bytes) else reference.read_bytes())


class _File(io.BufferedReader):
    """A file that sets no memory aside for more bytes than it has, however many are asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _bytes_or_path(reference: Mapping[str, Any]) -> bytes | str:
    """Return the content of the ``datasets`` library's image value."""
    content = reference.get("bytes") or reference.get("path")
    if content is None:
        raise UnreadableImage("there is no image in this row")
    if content == reference.get("path") and not os.path.exists(content):
        raise UnreadableImage(f"{one_line(content)} is missing")
    return content


def _parts(stream: BinaryIO) -> tuple[bytes, bytes, bytes, int]:
    """Return the first bytes, some of the middle, the last bytes, and the length of a stream."""
    stream.seek(0)
    start = stream.read(_PART)
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(num_bytes // 2)
    middle = stream.read(_PART)
    stream.seek(max(0, num_bytes - _PART))
    return start, middle, stream.read(), num_bytes


def _reason(error: Exception) -> str:
    """Return a few words for an error raised while opening an image."""
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return one_line(" ".join(str(error).split()))[:_LONGEST_REASON] or type(error).__name__
