"""Images for training and evaluation: what a recipe's ``data:`` section turns into.

>>> dataset = build_dataset(DataConfig(name="digits"))
>>> dataset[0]["images"].shape
torch.Size([1, 16, 16])

A :class:`DatasetSource` finds the images (:class:`Rows`), a :class:`Preprocessing` gives every one
the same shape, and an :class:`ImageDataset` serves them. The names below load on first use, so
``import spectok.data`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectok.data.build import build_dataset
    from spectok.data.config import DataConfig, config_for_path
    from spectok.data.dataset import ImageDataset
    from spectok.data.preprocessing import Preprocessing
    from spectok.data.report import DataReport
    from spectok.data.rows import Rows
    from spectok.data.sources import DatasetCard, DatasetSource

_HOME = {
    "DataConfig": "config",
    "DataReport": "report",
    "DatasetCard": "sources",
    "DatasetSource": "sources",
    "ImageDataset": "dataset",
    "Preprocessing": "preprocessing",
    "Rows": "rows",
    "build_dataset": "build",
    "config_for_path": "config",
}

__all__ = [
    "DataConfig",
    "DataReport",
    "DatasetCard",
    "DatasetSource",
    "ImageDataset",
    "Preprocessing",
    "Rows",
    "build_dataset",
    "config_for_path",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectok.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spectok.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
