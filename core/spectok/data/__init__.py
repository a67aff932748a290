"""Images for training and evaluation: what a recipe's ``data:`` section turns into.

>>> dataset = build_dataset(DataConfig(name="digits"))
>>> dataset[0]["images"].shape
torch.Size([1, 16, 16])

A :class:`DatasetSource` finds the images (:class:`Rows`), a :class:`Preprocessing` brings them all
to one shape, and an :class:`ImageDataset` serves them. The names below load on first use, so
``import spectok.data`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.lazy import lazy_exports

if TYPE_CHECKING:
    from spectok.data.build import build_dataset
    from spectok.data.choice import data_override
    from spectok.data.data_config import DataConfig, config_for_path
    from spectok.data.dataset import ImageDataset
    from spectok.data.originals import OriginalImages, build_originals
    from spectok.data.preprocessing import Preprocessing
    from spectok.data.report import DataReport
    from spectok.data.rows import Rows
    from spectok.data.sources import DatasetCard, DatasetSource

_HOME = {
    "DataConfig": "spectok.data.data_config",
    "DataReport": "spectok.data.report",
    "DatasetCard": "spectok.data.sources",
    "DatasetSource": "spectok.data.sources",
    "ImageDataset": "spectok.data.dataset",
    "OriginalImages": "spectok.data.originals",
    "Preprocessing": "spectok.data.preprocessing",
    "Rows": "spectok.data.rows",
    "build_dataset": "spectok.data.build",
    "build_originals": "spectok.data.originals",
    "config_for_path": "spectok.data.data_config",
    "data_override": "spectok.data.choice",
}

__all__ = [
    "DataConfig",
    "DataReport",
    "DatasetCard",
    "DatasetSource",
    "ImageDataset",
    "OriginalImages",
    "Preprocessing",
    "Rows",
    "build_dataset",
    "build_originals",
    "config_for_path",
    "data_override",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
