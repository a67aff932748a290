"""``evaluate``: measure one tokenizer on one data set, and record the protocol with the numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectok.data import ImageDataset
from spectok.errors import InputError
from spectok.evaluation.checks import POSITIONS
from spectok.evaluation.codebooks import UsageByPosition
from spectok.evaluation.features import RECONSTRUCTED, Networks, feature_metrics, too_few
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import evaluate_reconstruction
from spectok.evaluation.reference import REFERENCE_IMAGES, ImageHash
from spectok.machine import describe_machine, forget_peak_memory, peak_memory_bytes
from spectok.metrics import SSIM_WINDOW
from spectok.plugins import registry
from spectok.tokenizer import ImageTokenizer

SPEED_SECONDS = 0.5
SPEED_RUNS = 20


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    Args:
        batch_size: Images at once; affects only speed and memory.
        metrics: Registered metrics. None: all.
        networks: Where to find the networks in whose features images are compared.
        seed: Seed of the random numbers that a tokenizer draws, if any.
    """

    batch_size: int = 64
    metrics: tuple[str, ...] | None = None
    networks: Networks = field(default_factory=Networks)
    seed: int = 0


def evaluate(
    tokenizer: ImageTokenizer,
    dataset: ImageDataset,
    how: Evaluation | None = None,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Measure everything about a tokenizer that can be measured on this machine.

    Args:
        tokenizer: A trained tokenizer, on the device to run on; put into eval mode.
        dataset: Held-out images, without augmentation.
        how: Metrics, networks and batch size.
        on_images: Called with the number of images done since the last call.

    Returns:
        Plain JSON types: ``metrics``; ``not_measured``, other metrics with what each would need;
        the other results of :func:`spectok.evaluation.evaluate_reconstruction`, with ``positions``
        in each level; ``reference_images``, a hash of their decoded pixels; ``images_per_second``
        (encode and decode) and ``peak_memory_bytes``; ``protocol`` and ``machine``.

    Raises:
        InputError: If the images do not have the tokenizer's shape.
        CheckpointError: If given weights cannot be used.
    """
    how = how or Evaluation()
    check_shape(tokenizer, dataset)
    height, width = dataset.interior[2:] if dataset.interior else dataset.image_shape[1:]
    shown = (dataset.image_shape[0], height, width)
    features = feature_metrics(how.networks, shown, tokenizer.device)
    names, too_small = choose_metrics(how.metrics, min(height, width))
    more = {**features.metrics, POSITIONS: UsageByPosition(tokenizer.token_spec)}
    more[REFERENCE_IMAGES] = ImageHash()
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        found = evaluate_reconstruction(tokenizer, dataset, how.batch_size, names, more, on_images)
    for level, by_position in zip(found["levels"], found.pop(POSITIONS)):
        level[POSITIONS] = by_position
    measured = {name: found.pop(name) for name in names}
    not_measured = {**too_small, **features.not_measured}
    for name in features.metrics:
        numbers = found.pop(name)
        measured |= numbers if name in RECONSTRUCTED else {name: numbers}
        not_measured |= too_few(len(dataset), RECONSTRUCTED.get(name, {}))
    images = torch.stack([dataset[i]["images"] for i in range(min(how.batch_size, len(dataset)))])
    return {
        "metrics": measured,
        **found,
        **measure_cost(tokenizer, images),
        "not_measured": not_measured,
        "protocol": make_protocol(
            dataset, type_name(tokenizer.dtype), how.seed, features.extractors, features.settings
        ),
        "machine": describe_machine(),
    }


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type without its package, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def check_shape(tokenizer: ImageTokenizer, dataset: ImageDataset) -> None:
    """Refuse images of a shape that the tokenizer does not take.

    Raises:
        InputError: Says which shape it takes.
    """
    if tuple(dataset.image_shape) != tuple(tokenizer.image_shape):
        raise InputError(
            f"images of shape {tuple(dataset.image_shape)} do not fit the tokenizer, which takes "
            f"{tuple(tokenizer.image_shape)}; set data.image_size and data.channels"
        )


def choose_metrics(
    chosen: Iterable[str] | None, size: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the registered metrics to compute, and the reasons for those left out."""
    if chosen is not None:
        return tuple(chosen), {}
    names = tuple(registry.names("metric"))
    if size >= SSIM_WINDOW:
        return names, {}
    reason = f"images of {size} pixels are smaller than its window of {SSIM_WINDOW}"
    return tuple(name for name in names if name != "ssim"), {"ssim": reason}


@torch.no_grad()
def measure_cost(tokenizer: ImageTokenizer, images: Tensor) -> dict[str, Any]:
    """Return the speed and memory of encoding and decoding one batch repeatedly.

    ``images_per_second`` is that of the median pass, after one to warm up. ``peak_memory_bytes`` is
    on a GPU the most that torch allocated; on a CPU the most that the process held, libraries
    included, or None if the system does not report it.

    Args:
        tokenizer: On the device to run on.
        images: One batch.
    """
    on_gpu = tokenizer.device.type == "cuda"
    images = images.to(tokenizer.device, tokenizer.dtype)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(tokenizer.device)
    can_tell = on_gpu or forget_peak_memory()
    tokenizer.decode(tokenizer.encode(images))
    times: list[float] = []
    while len(times) < SPEED_RUNS and sum(times) < SPEED_SECONDS:
        begin = time.perf_counter()
        tokenizer.decode(tokenizer.encode(images))
        if on_gpu:
            torch.cuda.synchronize(tokenizer.device)
        times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated(tokenizer.device) if on_gpu else peak_memory_bytes()
    return {
        "images_per_second": len(images) / statistics.median(times),
        "peak_memory_bytes": peak if can_tell else None,
        "speed_batch_size": len(images),
    }
