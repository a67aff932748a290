"""The contract of what codes tokens in fewer bits than equally likely ones need."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Int
from torch import Tensor

from spectok.token_spec import TokenSpec


class TokenCoder(ABC):
    """Turns the tokens of many images into bytes, and exactly these tokens back.

    ``spectok_generation.PriorCoder`` does so with a prior.
    """

    @property
    @abstractmethod
    def token_spec(self) -> TokenSpec:
        """Layout of the tokens it codes."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides its bytes, in hexadecimal."""

    @property
    def num_classes(self) -> int:
        """Number of classes that tokens can be coded given; 0: none."""
        return 0

    @abstractmethod
    def encode(
        self, indices: Int[Tensor, "n t"], labels: Int[Tensor, "n"] | None, *, together: bool = True
    ) -> bytes:
        """Return tokens as bytes.

        Args:
            indices: Valid tokens.
            labels: Class of each row, if any.
            together: All rows in one stream; otherwise each row in its own, which takes about three
                more bytes a row.

        Raises:
            InputError: If the labels do not fit, or the coder needs some and has none.
        """

    @abstractmethod
    def decode(
        self, data: bytes, count: int, labels: Int[Tensor, "n"] | None, *, together: bool = True
    ) -> Int[Tensor, "n t"]:
        """Return the tokens that :meth:`encode` turned into bytes.

        Args:
            data: The bytes.
            count: Number of rows; checked already.
            labels: As they were given to :meth:`encode`.
            together: As it was given.

        Raises:
            DataError: If the bytes are none that :meth:`encode` writes.
        """
