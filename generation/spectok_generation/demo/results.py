"""What the demo finds, on its way from the pipeline to the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import ImageTokenizer, TokenSpec
from spectok.data import ImageDataset
from spectok.images import to_float
from spectok.training.contracts import Record
from spectok_generation.demo.demo_recipe import Plan
from spectok_generation.demo.judge import Closeness


@dataclass(frozen=True)
class Split:
    """Labelled images, as they are.

    Args:
        dataset: Where they come from.
        images: All of them, in [-1, 1].
        labels: Their classes.
    """

    dataset: ImageDataset
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]

    @classmethod
    def of(cls, dataset: ImageDataset) -> Split:
        """Read a whole labelled data set."""
        images = to_float(torch.tensor(dataset.uint8_images()))
        return cls(dataset, images, torch.tensor(dataset.labels))

    def one_per_class(self, count: int) -> list[int]:
        """Return the numbers of ``count`` images, the classes in turn."""
        by_class = [(self.labels == k).nonzero().flatten().tolist() for k in self.labels.unique()]
        turns = [i for rank in range(max(map(len, by_class))) for i in _ranked(by_class, rank)]
        return turns[:count]


@dataclass(frozen=True)
class Competitor:
    """A tokenizer that was trained and measured.

    Args:
        tokenizer: As loaded from its folder, in eval mode on the CPU.
        history: The log of its training.
        metrics: What ``metrics.json`` says of it.
        indices: Tokens of the training images.
    """

    tokenizer: ImageTokenizer
    history: list[Record]
    metrics: dict[str, Any]
    indices: Int[Tensor, "n t"]


@dataclass(frozen=True)
class Drawn:
    """Images drawn from the prior, and what was found about them.

    Args:
        images: About [-1, 1].
        labels: The class each was asked for.
        found: The class the classifier sees.
        closeness: How close they are to training images.
        metrics: What ``metrics.json`` says of them.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    found: Int[Tensor, "n"]
    closeness: Closeness
    metrics: dict[str, Any]

    def first_of_each_class(self, count: int) -> Float[Tensor, "k m c h w"]:
        """Return the first ``count`` images of each class, or fewer if there are fewer."""
        classes = self.labels.unique().tolist()
        return torch.stack([self.images[self.labels == k][:count] for k in classes])


@dataclass(frozen=True)
class Results:
    """Everything the page shows.

    Args:
        plan: What was done.
        out: Folder of the demo, as it was given.
        training: What everything learned from.
        held_out: What nothing learned from.
        competitors: The tokenizers; the prior learned the tokens of the first.
        prior_history: The log of the prior's training.
        drawn: The samples.
        metrics: All of ``metrics.json``.
    """

    plan: Plan
    out: Path
    training: Split
    held_out: Split
    competitors: dict[str, Competitor]
    prior_history: list[Record]
    drawn: Drawn
    metrics: dict[str, Any]

    @property
    def main(self) -> Competitor:
        """The tokenizer whose tokens the prior learned."""
        return self.competitors[self.plan.main]


def prefix_lengths(spec: TokenSpec) -> list[int]:
    """Return the lengths 0, 1, 2, 4, … and T, as far as such a prefix decodes."""
    doubling = {0, spec.num_tokens, *(1 << i for i in range(spec.num_tokens.bit_length()))}
    return sorted(doubling & set(spec.decodable_prefixes))


def _ranked(by_class: list[list[int]], rank: int) -> list[int]:
    return [numbers[rank] for numbers in by_class if rank < len(numbers)]
