"""The tokens that a small text encoder keeps, of the many that its tokenizer has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spectok.errors import CheckpointError, InputError, shown


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens have a vector; the others' would be most of a small encoder's weights.

    Args:
        ids: The tokenizer's numbers of these tokens, rising, so that the end of a text stays the
            largest. Row i of the embedding belongs to the i-th.
    """

    ids: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Int[Tensor, "b l"]) -> Vocabulary:
        """Return the tokens that occur, padding included."""
        return cls(tuple(tokens.unique().tolist()))

    @classmethod
    def from_config(cls, ids: Any, num_rows: int, place: str) -> Vocabulary | None:
        """Return what a saved encoder's config says; None if it keeps all.

        Args:
            ids: What was read.
            num_rows: Vectors of the embedding.
            place: Where it was read, for the message.

        Raises:
            CheckpointError: If it is no rising list of a number for each vector.
        """
        if ids is None:
            return None
        whole = isinstance(ids, list) and all(type(number) is int for number in ids)
        if not whole or ids != sorted(set(ids)) or len(ids) != num_rows or ids[0] < 0:
            raise CheckpointError(
                f"{place}: the vocabulary {shown(ids)} is no rising list of {num_rows} tokens; "
                f"copy or save it again"
            )
        return cls(tuple(ids))

    def rows(
        self, tokens: Int[Tensor, "b l"], prompts: Sequence[str], decode: Callable[[int], str]
    ) -> Int[Tensor, "b l"]:
        """Return the row of each token.

        Args:
            tokens: Numbers of the tokenizer.
            prompts: What was tokenized, for the message.
            decode: Returns the text of one token.

        Raises:
            InputError: If a token has no vector; names the prompt and the word.
        """
        known = torch.tensor(self.ids)
        rows = torch.searchsorted(known, tokens).clamp(max=len(known) - 1)
        missing = known[rows] != tokens
        if missing.any():
            row, column = missing.nonzero()[0].tolist()
            word = decode(int(tokens[row, column])).strip()
            raise InputError(
                f"this text encoder does not know {word!r}, in the prompt {prompts[row][:60]!r}; "
                f"it keeps only the words of the captions it was trained on"
            )
        return rows
