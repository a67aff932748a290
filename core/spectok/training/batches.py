"""What each process sees in each micro-batch: its samples and its random numbers.

Both are functions of (seed, micro-batch number, rank) alone. Resuming needs no saved state, and two
processes together see exactly what one process with the same global batch sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from spectok.distributed import shared_draws
from spectok.errors import SpectokError
from spectok.training.workers import PREFETCH

Key = tuple[int, int]
"""Epoch and index of one sample."""


@dataclass(frozen=True)
class Stream(Sampler[list[Key]]):
    """One rank's share of an endless sequence of shuffled epochs, cut into micro-batches.

    Epochs follow one another without a gap: a batch that starts in one may end in the next. So all
    batches have the same size, no image is dropped or repeated within an epoch, and a data set
    smaller than a batch works.

    Args:
        num_samples: Length of the data set.
        batch_size: Samples per rank and micro-batch.
        seed: Seed of the order; each epoch has its own.
        first: First micro-batch to deal.
        last: Micro-batch to stop before.
        rank: This process.
        num_ranks: Number of processes.
    """

    num_samples: int
    batch_size: int
    seed: int
    first: int
    last: int
    rank: int = 0
    num_ranks: int = 1

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        orders: dict[int, np.ndarray] = {}
        for number in range(self.first, self.last):
            start = (number * self.num_ranks + self.rank) * self.batch_size
            keys = []
            for position in range(start, start + self.batch_size):
                epoch, place = divmod(position, self.num_samples)
                if epoch not in orders:
                    orders = {e: order for e, order in orders.items() if e == epoch - 1}
                    orders[epoch] = self._order(epoch)
                keys.append((epoch, int(orders[epoch][place])))
            yield keys

    def _order(self, epoch: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0, epoch))
        return torch.randperm(self.num_samples, generator=generator).numpy()


class EpochDataset(Dataset[Any]):
    """A data set that is indexed by epoch and sample.

    The epoch is part of the key because a running worker process cannot be told of a new one.
    Augmentation that depends on the epoch, and on no global state, is then the same with any number
    of workers.

    Args:
        dataset: Map-style data set; its ``set_epoch``, if it has one, is called before a sample of
            a different epoch is read.
    """

    def __init__(self, dataset: Dataset[Any]):
        self.dataset, self._epoch = dataset, -1

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        """Return the samples of a batch; a data set that reads several at once does so."""
        read_several = getattr(self.dataset, "__getitems__", None)
        items: list[Any] = []
        for epoch, group in itertools.groupby(keys, key=itemgetter(0)):
            self._set_epoch(epoch)
            rows = [index for _, index in group]
            items += read_several(rows) if read_several else [self.dataset[row] for row in rows]
        return items

    def _set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


def make_loader(
    dataset: Sequence[Any] | Dataset[Any], stream: Stream, num_workers: int, pinned: bool = False
) -> Any:
    """Return a loader of the stream's micro-batches, collated on the CPU.

    Args:
        dataset: Map-style data set; its ``collate``, if it has one, replaces torch's default.
        stream: Which samples, in which order.
        num_workers: Worker processes; 0 loads in this one. They live as long as the loader, and
            each keeps :data:`~spectok.training.workers.PREFETCH` batches ready.
        pinned: Whether batches lie in memory that a GPU copies from while it computes.
    """
    return DataLoader(
        EpochDataset(dataset),  # type: ignore[arg-type]
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=getattr(dataset, "collate", None),
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=pinned,
        # its own, so the global random state is left alone
        generator=torch.Generator().manual_seed(derive_seed(stream.seed, 5)),
    )


def read(loader: Any) -> Iterator[Any]:
    """Yield a loader's batches; our own errors stay one line even from a worker process."""
    try:
        yield from loader
    except SpectokError as error:
        if "Original Traceback" not in str(error):
            raise
        told = str(error).strip().splitlines()[-1].partition(": ")[2]
        raise type(error)(told) from None


@contextmanager
def seeded(seed: int, number: int, rank: int) -> Iterator[None]:
    """Seed the random numbers of one micro-batch.

    torch's global generators (dropout, noise) get a seed of their own on each rank;
    :func:`spectok.distributed.draw_per_sample` draws the same numbers on all ranks.

    Args:
        seed: Seed of the run.
        number: Number of the micro-batch since the start of the run.
        rank: This process.
    """
    torch.manual_seed(derive_seed(seed, 1, number, rank))
    with shared_draws(derive_seed(seed, 2, number)):
        yield


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers into one 63-bit seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1
