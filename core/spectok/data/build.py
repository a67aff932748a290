"""Turn a recipe's ``data:`` section into a data set."""

from __future__ import annotations

from dataclasses import replace

from spectok.data.augment import Augmentation
from spectok.data.data_config import DataConfig
from spectok.data.dataset import MEMORY_LIMIT, ImageDataset
from spectok.data.splits import hold_out
from spectok.errors import ConfigError
from spectok.plugins.registry import get_dataset


def build_dataset(config: DataConfig, *, seed: int = 0, train: bool = True) -> ImageDataset:
    """Build the data set that a recipe's ``data:`` section describes.

    Args:
        config: The section.
        seed: Seed of the augmentation.
        train: Whether to augment; if not, the first of several captions is served.

    Raises:
        UnknownNameError: If no data set of that name is registered.
        ConfigError: If an option does not fit the data set.
        DataError: If images are missing or damaged; the message names them.
    """
    source = get_dataset(config.name)
    if config.streaming and config.name != "webdataset":
        raise ConfigError(
            f"data.streaming is for webdataset, not {config.name!r}; leave it out "
            "(large sets are decoded when asked for anyway)"
        )
    preprocessing = replace(source.preprocessing(config), max_value=config.max_value)
    if config.resize_filter is not None:
        preprocessing = replace(preprocessing, filter=config.resize_filter)
    rows = source.load(config)
    if config.labels is False:
        rows = replace(rows, labels=None, class_names=None, num_classes=None)
    if not rows.owns_split:
        rows = hold_out(rows, config)
    if config.limit is not None and config.limit < len(rows):
        rows = rows.select(range(config.limit))
    return ImageDataset(
        rows,
        preprocessing,
        name=f"{config.name}/{config.split}",
        augmentation=Augmentation(config.horizontal_flip, config.max_shift) if train else None,
        seed=seed,
        skip_unreadable=config.skip_unreadable,
        memory_limit=0 if config.streaming else MEMORY_LIMIT,
    )
