"""How much of its codebooks a tokenizer uses, at each token position."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spectok.metrics import SetMetric
from spectok.quantizers import perplexity
from spectok.token_spec import TokenSpec


class UsageByPosition(SetMetric):
    """Usage and perplexity of codes at each position of each level, over a set of images.

    Both are taken over the codes that can occur at a position: those of its codebook, or those of
    all codebooks of the level if the codebook depends on the levels above.

    Args:
        spec: Layout of the tokens.
    """

    def __init__(self, spec: TokenSpec):
        self.spec = spec
        lowest = torch.zeros(1, spec.num_tokens, dtype=torch.int64)
        highest = torch.tensor([spec.vocab_sizes]) - 1
        self._first = spec.code_ids(lowest)  # (1, t)
        self._widths = (spec.code_ids(highest) - self._first + 1)[0]  # (t,)
        self._starts = self._widths.cumsum(0) - self._widths
        self._counts = torch.zeros(int(self._widths.sum()), dtype=torch.int64)

    def add(self, images: Tensor, reconstruction: Tensor, indices: Int[Tensor, "b t"]) -> None:
        """Count the codes of a batch."""
        numbers = self.spec.code_ids(indices.cpu()) - self._first + self._starts
        self._counts += torch.bincount(numbers.flatten(), minlength=len(self._counts))

    def result(self) -> list[dict[str, Any]]:
        """Return for each level ``codebook_usage`` and ``perplexity``, one per position."""
        found: list[dict[str, Any]] = [
            {"codebook_usage": [], "perplexity": []} for _ in self.spec.levels
        ]
        by_place = self._counts.double().split(self._widths.tolist())
        # places of one level come in the order of their positions, however levels interleave
        for level, counts in zip(self.spec.level_of_place, by_place):
            found[level]["codebook_usage"].append(float(counts.gt(0).double().mean()))
            found[level]["perplexity"].append(float(perplexity(counts)))
        return found
