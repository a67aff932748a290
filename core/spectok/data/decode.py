"""Open image files of any format and mode, or say why one cannot be opened."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from spectok.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_SUFFIXES = {
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"
_TAIL = 4096


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
    try:
        with _opened(reference) as stream:
            image = Image.open(stream)
            image.load()
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise UnreadableImage(_reason(error)) from error
    return image


def inspect_image(reference: Any) -> tuple[tuple[int, int], str, int]:
    """Check an image without decoding it: the header opens, and JPEG and PNG files are complete.

    Returns:
        (width, height), mode, and size of the encoded data in bytes.

    Raises:
        UnreadableImage: If it is missing, not an image, or cut short.
    """
    if isinstance(reference, np.ndarray | Image.Image):
        image = open_image(reference)
        return image.size, image.mode, image.width * image.height * len(image.getbands())
    try:
        with _opened(reference) as stream:
            image = Image.open(stream)  # reads the header alone
            size, mode = image.size, image.mode
            start, end, num_bytes = _ends(stream)
    except Exception as error:  # as above
        raise UnreadableImage(_reason(error)) from error
    if (start.startswith(_JPEG_START) and _JPEG_END not in end) or (
        start.startswith(_PNG_START) and _PNG_END not in end
    ):
        raise UnreadableImage("the file is cut short")
    return size, mode, num_bytes


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return the image upright, as 8-bit grey (1 channel) or RGB (3 channels).

    Transparent images are composited on white, the orientation recorded by the camera is applied,
    and 16-bit grey keeps its upper 8 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels; save it as 8-bit or 16-bit")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype("u1"))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return image.convert("L" if channels == 1 else "RGB")


def _opened(reference: Any) -> BinaryIO:
    """Return a readable stream for a reference to encoded data; the caller closes it."""
    if isinstance(reference, dict):
        reference = _bytes_or_path(reference)
    if isinstance(reference, str | os.PathLike):
        return open(reference, "rb")
    return io.BytesIO(reference if isinstance(reference, bytes) else reference.read_bytes())


def _bytes_or_path(reference: Mapping[str, Any]) -> bytes | str:
    """Return the content of the ``datasets`` library's image value."""
    content = reference.get("bytes") or reference.get("path")
    if content is None:
        raise UnreadableImage("it is empty")
    return content


def _ends(stream: BinaryIO) -> tuple[bytes, bytes, int]:
    """Return the first bytes, the last bytes and the length of a stream."""
    stream.seek(0)
    start = stream.read(8)
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, num_bytes - _TAIL))
    return start, stream.read(), num_bytes


def _reason(error: Exception) -> str:
    """Return a few words for an error raised while opening an image."""
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return " ".join(str(error).split()) or type(error).__name__
