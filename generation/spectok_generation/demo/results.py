"""What the demo measures, passed from the pipeline to the report."""

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
from spectok_generation.demo.installed import OnPhotographs
from spectok_generation.demo.judge import Closeness


@dataclass(frozen=True)
class Split:
    """Labelled images without augmentation.

    Args:
        dataset: Where they come from.
        images: All images, in [-1, 1].
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
        """Return the indices of ``count`` images, cycling through the classes."""
        by_class = [(self.labels == k).nonzero().flatten().tolist() for k in self.labels.unique()]
        turns = [i for rank in range(max(map(len, by_class))) for i in _ranked(by_class, rank)]
        return turns[:count]


@dataclass(frozen=True)
class Competitor:
    """A trained and measured tokenizer.

    Args:
        tokenizer: Loaded from its folder, in eval mode on the CPU.
        history: Log of its training.
        metrics: Its part of ``metrics.json``.
        indices: Tokens of the training images.
    """

    tokenizer: ImageTokenizer
    history: list[Record]
    metrics: dict[str, Any]
    indices: Int[Tensor, "n t"]


@dataclass(frozen=True)
class Drawn:
    """Images drawn from the prior, with their measurements.

    Args:
        images: About [-1, 1].
        labels: Class that each was conditioned on.
        found: Class that the classifier predicts.
        closeness: How close they are to training images.
        metrics: Their part of ``metrics.json``.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    found: Int[Tensor, "n"]
    closeness: Closeness
    metrics: dict[str, Any]

    def first_of_each_class(self, count: int) -> Float[Tensor, "k m c h w"]:
        """Return the first ``count`` images of each class, or all if there are fewer."""
        classes = self.labels.unique().tolist()
        return torch.stack([self.images[self.labels == k][:count] for k in classes])


@dataclass(frozen=True)
class Results:
    """Everything that the report shows.

    Args:
        plan: The plan that was carried out.
        out: Folder of the demo, as given.
        training: The training images.
        held_out: The held-out images.
        competitors: The tokenizers; the prior learned the tokens of the first.
        prior_history: Log of the training of the prior.
        drawn: The samples.
        on_photographs: Photographs through installed models; None if there are none.
        metrics: Contents of ``metrics.json``.
    """

    plan: Plan
    out: Path
    training: Split
    held_out: Split
    competitors: dict[str, Competitor]
    prior_history: list[Record]
    drawn: Drawn
    on_photographs: OnPhotographs | None
    metrics: dict[str, Any]

    @property
    def main(self) -> Competitor:
        """The tokenizer whose tokens the prior learned."""
        return self.competitors[self.plan.main]


def prefix_lengths(spec: TokenSpec) -> list[int]:
    """Return those of the lengths 0, 1, 2, 4, … and T whose prefix decodes."""
    doubling = {0, spec.num_tokens, *(1 << i for i in range(spec.num_tokens.bit_length()))}
    return sorted(doubling & set(spec.decodable_prefixes))


def _ranked(by_class: list[list[int]], rank: int) -> list[int]:
    return [numbers[rank] for numbers in by_class if rank < len(numbers)]
