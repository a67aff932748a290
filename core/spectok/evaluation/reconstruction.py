"""Measuring what a tokenizer keeps of a data set, with the registered metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spectok.errors import DataError
from spectok.metrics import ImageMean, SetMetric, codebook_statistics, count_codes
from spectok.plugins import registry
from spectok.tokenizer import ImageTokenizer

STANDARD = ("psnr", "ssim", "mse")
BLOCK = 16
BLOCK_PIXELS = BLOCK * 128 * 128


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: ImageTokenizer,
    dataset: Dataset[dict[str, Any]],
    batch_size: int = 64,
    metrics: Iterable[str] = STANDARD,
    more: Mapping[str, SetMetric] | None = None,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Measure what a tokenizer keeps of a data set, and the bits it spends.

    If the data has an added border, image metrics are computed inside it.

    Args:
        tokenizer: A trained tokenizer, on the device to run on; put into eval mode.
        dataset: Items with ``"images"``, such as :class:`spectok.data.ImageDataset`.
        batch_size: Images at once on a GPU. A CPU always takes blocks of the same size, so that its
            results do not depend on it at all.
        metrics: Registered metrics to compute.
        more: Further metrics by name, such as those that need files.
        on_images: Called with the number of images done since the last call.

    Returns:
        Plain JSON types: each metric; ``codebook_usage`` and ``perplexity``, with twins and without
        (``distinct_…``), over all codebooks and per level (see :func:`codebook_statistics`);
        ``bits_per_image``, ``parameters`` and ``num_images``.

    Raises:
        UnknownNameError: If a metric is not registered.
        DataError: If the data set is empty.
    """
    measured = {name: start_metric(name) for name in metrics} | dict(more or {})
    spec = tokenizer.token_spec
    counts = torch.zeros(spec.num_codes, dtype=torch.int64)
    tokenizer.eval()
    collate = getattr(dataset, "collate", None)
    block = block_size(tokenizer)
    for batch in DataLoader(dataset, batch_size=block or batch_size, collate_fn=collate):
        images = batch["images"].to(tokenizer.device)
        indices, reconstruction = there_and_back(tokenizer, images, block or len(images))
        shown, decoded = (interior_of(x, dataset) for x in (images, reconstruction))
        for metric in measured.values():
            metric.add(shown, decoded, indices)
        counts += count_codes(spec, indices.cpu())
        if on_images is not None:
            on_images(len(images))
    num_images = int(counts.sum()) // spec.num_tokens
    if not num_images:
        raise DataError("the data set is empty; evaluation needs at least one image")
    return {
        **{name: metric.result() for name, metric in measured.items()},
        **codebook_statistics(spec, counts, tokenizer.code_tables),
        "bits_per_image": spec.bits_per_image,
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "num_images": num_images,
    }


def block_size(tokenizer: ImageTokenizer) -> int | None:
    """Return how many images a CPU takes at once; None on other devices.

    Kernels for products are chosen by the number of rows, and round differently in the last digit.
    """
    if tokenizer.device.type != "cpu":
        return None
    _, height, width = tokenizer.image_shape
    return max(1, min(BLOCK, BLOCK_PIXELS // (height * width)))


def there_and_back(tokenizer: ImageTokenizer, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return indices and reconstructions, computed in blocks of ``size``; see :func:`in_blocks`."""
    indices = in_blocks(tokenizer.encode, images.to(tokenizer.dtype), size)
    return indices, in_blocks(tokenizer.decode, indices, size).to(images.dtype)


def in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Apply a function to rows in blocks of one size; the last one is filled up with its last row.

    What a row gives then does not depend on how many others there are: kernels for products are
    chosen by the number of rows.

    Args:
        function: Maps n rows to n rows.
        rows: At least one.
        size: Rows of a block.
    """
    parts = []
    for part in rows.split(size):
        filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
        parts.append(function(filled)[: len(part)])
    return torch.cat(parts)


def start_metric(name: str) -> SetMetric:
    """Return a registered metric, ready to measure one set.

    Raises:
        UnknownNameError: If it is not registered.
    """
    registered: Any = registry.get_registered("metric", name)
    return registered() if isinstance(registered, type) else ImageMean(registered)


def interior_of(images: Tensor, dataset: Any) -> Tensor:
    """Return images without the border that their data set added, if any."""
    box = getattr(dataset, "interior", None)
    if box is None:
        return images
    top, left, height, width = box
    return images[..., top : top + height, left : left + width]
