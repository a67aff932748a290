"""Measuring what a tokenizer keeps of images at their own sizes, whole or in tiles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectok.data.originals import OriginalImages
from spectok.errors import InputError, shown
from spectok.evaluation.measuring import choose_metrics, type_name
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import start_metric
from spectok.machine import describe_machine
from spectok.metrics import ImageMean, codebook_statistics, count_codes
from spectok.sizes import ImageSize, as_size, size_of
from spectok.tiling import Tiling, decode_tiles, encode_tiles, plan_tiles
from spectok.tokenizer import ImageTokenizer

SIZING = "sizing"
"""Key of a protocol of images at their own sizes: how they were encoded."""
OF_SETS = "defined for images of one size; evaluate without --original and --tile"


@dataclass(frozen=True)
class Sizing:
    """How images of any size are encoded.

    Args:
        tile: Size of the tiles, in pixels; None: each image whole.
        overlap: Pixels that tiles share; None: a quarter of a tile's shorter side.
        pad: Whether images that do not fit are continued by their mirror image, and their
            reconstructions cropped; if not, they are refused.
    """

    tile: ImageSize | None = None
    overlap: int | None = None
    pad: bool = True

    @classmethod
    def from_dict(cls, described: Any) -> Sizing:
        """Return the sizing that a protocol records.

        Raises:
            InputError: If it records none.
        """
        keys = {"tile", "overlap", "pad"}
        if not isinstance(described, Mapping) or described.keys() != keys:
            raise InputError(f"{SIZING} {shown(described)} of a protocol has not {sorted(keys)}")
        if described["tile"] is None:
            return cls(pad=described["pad"] is True)
        if type(described["overlap"]) is not int:
            raise InputError(f"overlap {shown(described['overlap'])} is not a number of pixels")
        return cls(as_size(described["tile"]), described["overlap"], described["pad"] is True)


@torch.no_grad()
def evaluate_originals(
    tokenizer: ImageTokenizer,
    dataset: OriginalImages,
    sizing: Sizing | None = None,
    *,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Measure what a tokenizer keeps of images at their own sizes, and what it spends on them.

    Args:
        tokenizer: A trained tokenizer, on the device to run on; put into eval mode.
        dataset: Held-out images.
        sizing: Whole images, or tiles.
        seed: Seed of the random numbers that the tokenizer draws, if any.
        on_images: Called with the number of images done since the last call.

    Returns:
        Plain JSON types: ``metrics``, means over the images; ``images``, the size, tiles, bits and
        metrics of each; ``bits_per_image`` and ``bits_per_pixel`` (bits of all images by their
        pixels); ``codebook_usage``, ``perplexity`` and the rest of
        :func:`spectok.metrics.codebook_statistics`; ``seconds``, of encoding and decoding all of
        them; ``not_measured``; ``protocol``, which has the ``sizing``; and ``machine``.

    Raises:
        InputError: If the tokenizer does not take such images or tiles.
    """
    sizing = sizing or Sizing()
    tokenizer.eval()
    plans = [_plan(tokenizer, dataset, number, sizing) for number in range(len(dataset))]
    names, not_measured = choose_metrics(None, min(min(plan.image_size) for plan in plans))
    metrics = {name: start_metric(name) for name in names}
    means = {name: metric for name, metric in metrics.items() if isinstance(metric, ImageMean)}
    counts = torch.zeros(tokenizer.token_spec.num_codes, dtype=torch.int64)
    found, seconds = [], 0.0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for number, plan in enumerate(plans):
            image = dataset[number]["images"][None].to(tokenizer.device)
            indices, decoded, taken = _reconstruct(tokenizer, image, plan)
            for metric in means.values():
                metric.add(image, decoded, indices)
            spec = tokenizer.token_spec_at(plan.tile_size)
            counts += count_codes(spec, indices.cpu())
            bits, seconds = plan.num_tiles * spec.bits_per_image, seconds + taken
            facts = {"size": list(plan.image_size), "tiles": plan.num_tiles, "bits": bits}
            found.append({"name": dataset.name_of(number), **facts})
            if on_images is not None:
                on_images(1)
    for name, metric in means.items():
        for image, value in zip(found, metric.values()):
            image[name] = value
    bits = sum(image["bits"] for image in found)
    described = {
        "tile": None if sizing.tile is None else list(as_size(sizing.tile)),
        "overlap": plans[0].overlap,
        "pad": sizing.pad,
    }
    return {
        "metrics": {name: metric.result() for name, metric in means.items()},
        **codebook_statistics(tokenizer.token_spec, counts, tokenizer.code_tables),
        "bits_per_image": bits / len(found),
        "bits_per_pixel": bits / sum(math.prod(plan.image_size) for plan in plans),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "num_images": len(found),
        "seconds": seconds,
        "images": found,
        "not_measured": not_measured | {name: OF_SETS for name in metrics if name not in means},
        "protocol": make_protocol(
            dataset, type_name(tokenizer.dtype), seed, {}, None, **{SIZING: described}
        ),
        "machine": describe_machine(),
    }


def _plan(
    tokenizer: ImageTokenizer, dataset: OriginalImages, number: int, sizing: Sizing
) -> Tiling:
    """Return how an image is encoded.

    Raises:
        InputError: Names the image that the tokenizer does not take.
    """
    size = size_of(dataset[number]["images"])
    how = {"tile": sizing.tile, "overlap": sizing.overlap, "pad": sizing.pad}
    try:
        return plan_tiles(tokenizer, size, **how)
    except InputError as error:
        raise InputError(f"image {dataset.name_of(number)}: {error}") from error


def _reconstruct(
    tokenizer: ImageTokenizer, image: Tensor, plan: Tiling
) -> tuple[Tensor, Tensor, float]:
    """Return the tokens of each tile (n, T), the decoded image, and the seconds both took."""
    begin = time.perf_counter()
    indices = encode_tiles(tokenizer, image, plan)
    decoded = decode_tiles(tokenizer, indices, plan).to(image.dtype)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return indices[0], decoded, time.perf_counter() - begin
