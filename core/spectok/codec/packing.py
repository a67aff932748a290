"""Integers of known ranges in as few bits as equally likely ones need, and short numbers.

Values are the digits of a number in mixed radix: 256 of them share a whole number of bits, so a
vocabulary that is no power of two loses at most a 256th of a bit per value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from spectok.errors import DataError

CHUNK = 256
LONGEST = 10  # bytes of a number of 64 bits, seven in each


def pack(values: np.ndarray, radices: np.ndarray) -> bytes:
    """Return values as bytes.

    Args:
        values: int64, shape (N,), each from 0 to below its radix.
        radices: int64, shape (N,), at least 1.
    """
    parts = []
    for part, sizes, width in _chunks(radices):
        number = 0
        for value, size in zip(values[part].tolist(), sizes):
            number = number * size + value
        digits = np.frombuffer(number.to_bytes(-(-width // 8), "big"), np.uint8)
        parts.append(np.unpackbits(digits)[-width:] if width else digits[:0])
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def packed_size(radices: np.ndarray) -> int:
    """Return how many bytes :func:`pack` writes."""
    return -(-sum(width for _, _, width in _chunks(radices)) // 8)


def unpack(data: bytes, radices: np.ndarray) -> np.ndarray:
    """Return the values that :func:`pack` wrote.

    Args:
        data: Exactly as long as :func:`packed_size` says.
        radices: See :func:`pack`.

    Raises:
        DataError: If the bytes are none that it writes.
    """
    if len(data) != packed_size(radices):
        raise DataError(f"{len(data):,} bytes of packed values are not {packed_size(radices):,}")
    values, place = np.zeros(len(radices), np.int64), 0
    for part, sizes, width in _chunks(radices):
        begin, end = place // 8, -(-(place + width) // 8)
        number = int.from_bytes(data[begin:end], "big") >> (8 * end - place - width)
        number, place = number & ((1 << width) - 1), place + width
        digits = []
        for size in reversed(sizes):
            number, digit = divmod(number, size)
            digits.append(digit)
        if number:
            raise DataError("packed values are out of range")
        values[part] = digits[::-1]
    if place % 8 and data[-1] & ((1 << (-place % 8)) - 1):
        raise DataError("packed values are followed by bits that mean nothing")
    return values


def _chunks(radices: np.ndarray) -> Iterator[tuple[slice, list[int], int]]:
    """Yield each chunk's place, its radices, and its bits."""
    for start in range(0, len(radices), CHUNK):
        part = slice(start, start + CHUNK)
        sizes = radices[part].tolist()
        yield part, sizes, (math.prod(sizes) - 1).bit_length()


def write_number(value: int) -> bytes:
    """Return a number of at most 64 bits, seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


class Reader:
    """Reads bytes from the front, and refuses to read more than there are.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    @property
    def left(self) -> int:
        """Number of bytes that are left."""
        return len(self._data) - self._place

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            DataError: If there are fewer.
        """
        if count > self.left:
            raise DataError(f"it claims {count:,} more bytes where {self.left:,} are left")
        self._place += count
        return self._data[self._place - count : self._place]

    def number(self, most: int, what: str) -> int:
        """Return the next number that :func:`write_number` wrote.

        Args:
            most: The largest it may be.
            what: What it is, for the message.

        Raises:
            DataError: If it is larger, or there is none.
        """
        value = 0
        for place in range(LONGEST):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                break
        else:
            raise DataError(f"its {what} has over {LONGEST} bytes")
        if value > most:
            raise DataError(f"its {what}, {value:,}, is over {most:,}")
        return value
