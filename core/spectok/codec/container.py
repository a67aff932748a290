"""The file format: what stands where, and what is refused before anything is allocated.

    4 bytes  magic                    93 53 54 4B
    2        version                  of this format
    2        flags                    bit 0 coder, 1 labels, 2 names, 3 tiles, 4 sizes differ,
                                      5 streams apart, 6 first tokens only
    4        length of the file
    8        tokenizer                first bytes of its fingerprint
    8        coder                    the same of the prior; with flag 0
    number   images N
    3 × n.   tile height, width and overlap; with flag 3
    number   tokens of each tile      that are kept; with flag 6
    2 × n.   height and width         of all images, or of each with flag 4
    number   classes C, then labels   packed, each from 0 to C, which is "no class"; with flag 1
    number   bytes of names           UTF-8, one each, separated by NUL; with flag 2
    2 × N    CRC-16 of each image's tokens and size
    4        CRC-32 of all tokens
    …        payload                  packed indices, or what the coder wrote
    4        CRC-32 of all that comes before

Integers of fixed length are little-endian; a "number" has seven bits a byte, the lowest first.
Every count is compared with the bytes that are there, and every size with a bound, before it is
used.
"""

from __future__ import annotations

import binascii
import re
import struct
from dataclasses import dataclass

import numpy as np

from spectok.codec.packing import Reader, pack, packed_size, unpack, write_number
from spectok.errors import DataError
from spectok.token_spec import MAX_TOKENS

MAGIC, VERSION = b"\x93STK", 1
FRONT = struct.Struct("<4sHHI")
FINGERPRINT, CHECK, END = 8, 2, 4
CODER, LABELS, NAMES, TILES, SIZES, APART, PREFIX = (1 << bit for bit in range(7))
LONGEST_FILE, LONGEST_SIDE, MOST_CLASSES = (1 << 32) - 1, (1 << 16) - 1, 1 << 20


@dataclass(frozen=True)
class Contents:
    """What a file holds besides the images' pixels.

    Args:
        tokenizer: First bytes of the tokenizer's fingerprint.
        coder: The same of the coder; None: indices are packed.
        sizes: Height and width of each image, in pixels.
        tile: Height, width and overlap of the tiles; None: each image is whole.
        labels: Class of each image, ``num_classes`` for none; None: there are no classes.
        num_classes: Number of classes.
        names: Name of each image, if they are kept.
        together: Whether the coder wrote one stream.
        checks: CRC-16 of each image.
        check: CRC-32 of all tokens.
        payload: The tokens.
        num_tokens: How many leading tokens of each tile are kept; None: all.
    """

    tokenizer: bytes
    coder: bytes | None
    sizes: list[tuple[int, int]]
    tile: tuple[int, int, int] | None
    labels: list[int] | None
    num_classes: int
    names: list[str] | None
    together: bool
    checks: list[int]
    check: int
    payload: bytes
    num_tokens: int | None = None


def write_contents(contents: Contents) -> bytes:
    """Return a file.

    Raises:
        DataError: If it would be longer than 4 GiB, or a name cannot be kept.
    """
    one_size = len(set(contents.sizes)) == 1
    flags = (
        CODER * (contents.coder is not None)
        | LABELS * (contents.labels is not None)
        | NAMES * (contents.names is not None)
        | TILES * (contents.tile is not None)
        | SIZES * (not one_size)
        | APART * (not contents.together)
        | PREFIX * (contents.num_tokens is not None)
    )
    numbers = [len(contents.sizes), *(contents.tile or ())]
    if contents.num_tokens is not None:
        numbers.append(contents.num_tokens)
    for size in contents.sizes[:1] if one_size else contents.sizes:
        numbers += size
    body = [contents.tokenizer, contents.coder or b"", *map(write_number, numbers)]
    if contents.labels is not None:
        radices = np.full(len(contents.labels), contents.num_classes + 1)
        body += [write_number(contents.num_classes), pack(np.array(contents.labels), radices)]
    if contents.names is not None:
        text = _joined(contents.names)
        body += [write_number(len(text)), text]
    body += [struct.pack(f"<{len(contents.checks)}H", *contents.checks)]
    body += [struct.pack("<I", contents.check), contents.payload]
    length = FRONT.size + sum(map(len, body)) + END
    if length > LONGEST_FILE:
        raise DataError(f"a file of {length:,} bytes is over {LONGEST_FILE:,}; write several")
    data = b"".join([FRONT.pack(MAGIC, VERSION, flags, length), *body])
    return data + struct.pack("<I", binascii.crc32(data))


def read_contents(data: bytes, max_pixels: int) -> Contents:
    """Read what :func:`write_contents` wrote.

    Args:
        data: The whole file.
        max_pixels: The most that all images may have together.

    Raises:
        DataError: Says whether it is another file, of a newer version, cut short, damaged, or
            claims too much.
    """
    if not data.startswith(MAGIC):
        raise DataError("it is not a file that 'spectok compress' wrote")
    if len(data) < FRONT.size:
        raise DataError(f"it is cut short after {len(data)} bytes; fetch it again")
    _, version, flags, length = FRONT.unpack_from(data)
    if version > VERSION:
        raise DataError(
            f"it is of version {version} of the format, or damaged; this spectok reads version "
            f"{VERSION}: install a newer one"
        )
    if len(data) < length:
        raise DataError(f"it is cut short: {len(data):,} of {length:,} bytes; fetch it again")
    if len(data) > length:
        raise DataError(f"it has {len(data):,} bytes where {length:,} were written; fetch it again")
    (end,) = struct.unpack_from("<I", data, max(length - END, 0)) if length >= END else (None,)
    if binascii.crc32(data[:-END]) != end:
        raise DataError("it is damaged: its bytes are not those that were written; fetch it again")
    try:
        return _parse(flags, version, Reader(data[FRONT.size : -END]), max_pixels)
    except DataError as error:
        raise DataError(f"it is no valid file of images: {error}") from error


def _parse(flags: int, version: int, reader: Reader, max_pixels: int) -> Contents:
    if version < 1 or flags >> 7:
        raise DataError(f"version {version} has no flags {flags:#x}")
    tokenizer = reader.take(FINGERPRINT)
    coder = reader.take(FINGERPRINT) if flags & CODER else None
    count = reader.number(reader.left // CHECK, "number of images")  # each has a check below
    if not count:
        raise DataError("it holds no image")
    tile = None
    if flags & TILES:
        tall, wide, overlap = (reader.number(LONGEST_SIDE, "tile") for _ in range(3))
        tile = (tall, wide, overlap)
        if overlap >= min(tall, wide):
            raise DataError(f"tiles of {tall}×{wide} pixels cannot share {overlap}")
    num_tokens = reader.number(MAX_TOKENS, "number of tokens") if flags & PREFIX else None
    sizes = [_read_size(reader) for _ in range(count if flags & SIZES else 1)]
    sizes *= count // len(sizes)
    pixels = sum(height * width for height, width in sizes)
    if pixels > max_pixels:
        raise DataError(
            f"its images have {pixels:,} pixels, over {max_pixels:,}; read it with a larger "
            "max_pixels if you trust it"
        )
    labels, num_classes = None, 0
    if flags & LABELS:
        num_classes = reader.number(MOST_CLASSES, "number of classes")
        radices = np.full(count, num_classes + 1)
        labels = unpack(reader.take(packed_size(radices)), radices).tolist()
    names = _read_names(reader, count) if flags & NAMES else None
    checks = list(struct.unpack(f"<{count}H", reader.take(CHECK * count)))
    (check,) = struct.unpack("<I", reader.take(END))
    return Contents(
        tokenizer, coder, sizes, tile, labels, num_classes, names, not flags & APART, checks, check,
        reader.take(reader.left), num_tokens,
    )  # fmt: skip


def _read_size(reader: Reader) -> tuple[int, int]:
    height, width = (reader.number(LONGEST_SIDE, "size of an image") for _ in range(2))
    if not height or not width:
        raise DataError(f"an image of {height}×{width} pixels is none")
    return height, width


def _joined(names: list[str]) -> bytes:
    for name in names:
        if re.search("[\0\ud800-\udfff]", name):
            raise DataError(f"the name {name!r} cannot be kept; leave names out")
    return "\0".join(names).encode()


def _read_names(reader: Reader, count: int) -> list[str]:
    text = reader.take(reader.number(reader.left, "length of the names"))
    try:
        names = text.decode().split("\0")
    except UnicodeDecodeError as error:
        raise DataError(f"its names are no text: {error.reason}") from error
    if len(names) != count:
        raise DataError(f"it has {len(names)} names of {count} images")
    return names
