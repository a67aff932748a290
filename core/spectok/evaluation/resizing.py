"""Held-out images as a tokenizer takes them: resized by the filter that it was trained with."""

from __future__ import annotations

from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.tokenizer import ImageTokenizer


def dataset_for(tokenizer: ImageTokenizer, config: DataConfig) -> tuple[ImageDataset, DataConfig]:
    """Build held-out images, of which those of another size are resized as the tokenizer's own are.

    Args:
        tokenizer: Its ``data_filter`` is taken where the configuration names none.
        config: The images; its ``resize_filter`` wins.

    Returns:
        The images, and their configuration with the filter that was taken. Where no image is of
        another size, both are as if the tokenizer had no filter, so that its numbers can be
        compared with those of others.

    Raises:
        DataError: If images are missing or damaged.
    """
    dataset = build_dataset(config, train=False)
    own, (_, height, width) = tokenizer.data_filter, tokenizer.image_shape
    fits = dataset.report.sizes.keys() <= {(width, height)}
    if own is None or config.resize_filter is not None or fits:
        return dataset, config
    config = config.model_copy(update={"resize_filter": own})
    return build_dataset(config, train=False), config
