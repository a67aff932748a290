"""``digits``: the 1,797 real handwritten digits that scikit-learn ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectok.data.sources import DatasetCard, DatasetSource
from spectok.errors import ConfigError, DataError

if TYPE_CHECKING:
    from spectok.data.data_config import DataConfig
    from spectok.data.rows import Rows

_TEST_PER_CLASS = 30
_ORDER_SEED = 20260


class Digits(DatasetSource):
    """Grey 8×8 digits with labels, enlarged to ``image_size`` (bicubic).

    The split is fixed: 30 images of each class (300) are ``test``, the other 1,497 are ``train``;
    both are in a fixed shuffled order.
    """

    def describe(self) -> DatasetCard:
        """Return the card."""
        return DatasetCard(
            "1,797 real handwritten digits, 8×8 enlarged to 16×16; needs no download",
            image_size=16,
            channels=1,
            num_classes=10,
            citation="Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)",
            license="cc-by-4.0",
        )

    def load(self, config: DataConfig) -> Rows:
        """Return one split."""
        from sklearn.datasets import load_digits

        from spectok.data.rows import Rows

        check_builtin(config, self.describe())
        pixels, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16, (1797,)
        labels = np.asarray(labels, dtype=np.int64)
        images = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        part = _split(labels, config.split)
        names = [f"digit {i}" for i in part]
        class_names = [str(digit) for digit in range(10)]
        return Rows(list(images[part]), names, labels[part], class_names=class_names)


def check_builtin(config: DataConfig, card: DatasetCard) -> None:
    """Refuse a path, or a split that a built-in data set does not have."""
    if config.path is not None:
        raise ConfigError(
            f"data.name {config.name!r} is built in and takes no path; for your own images "
            "set data.name to folder, parquet, webdataset or hub"
        )
    if config.split not in card.splits:
        raise DataError(
            f"{config.name!r} has no split {config.split!r}; it has {', '.join(card.splits)}"
        )


def _split(labels: np.ndarray, split: str) -> np.ndarray:
    """Return the indices of a split; the first 30 per class of a fixed shuffle are ``test``."""
    order = np.random.RandomState(_ORDER_SEED).permutation(len(labels))  # a frozen generator
    shuffled = labels[order]
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_test[np.flatnonzero(shuffled == digit)[:_TEST_PER_CLASS]] = True
    return order[is_test if split == "test" else ~is_test]
