"""Measure a prior by the probability it gives to the tokens of held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from spectok import ImageTokenizer
from spectok.data import ImageDataset
from spectok.errors import DataError, InputError
from spectok.evaluation.measuring import check_shape, type_name
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import BLOCK, block_size, in_blocks
from spectok.machine import describe_machine
from spectok.modeling import model_fingerprint
from spectok_generation.conditions import Condition
from spectok_generation.pairs import check_encoder, check_pair
from spectok_generation.priors import Prior
from spectok_generation.records import prior_fingerprint
from spectok_generation.sampling import NOT_FINITE, evaluating
from spectok_generation.text.encoder import TextEncoder


@torch.no_grad()
def measure_likelihood(
    prior: Prior,
    tokenizer: ImageTokenizer,
    dataset: ImageDataset,
    *,
    encoder: TextEncoder | None = None,
    batch_size: int = 64,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Measure ``-log p(tokens | condition)`` of held-out images: what a perfect coder would write.

    The likelihood is of the tokens, not of the pixels: what the tokenizer loses is not in it. The
    condition is the image's own class or caption, and costs nothing here.

    Args:
        prior: A trained prior of tokens, on the device to run on.
        tokenizer: The tokenizer it belongs to, on the same device.
        dataset: Held-out images, without augmentation.
        encoder: The text encoder of a prior that reads text.
        batch_size: Images at once on a GPU; a CPU always takes blocks of one size, so that the
            numbers do not depend on it.
        on_images: Called with the number of images done since the last call.

    Returns:
        Plain JSON types. ``metrics``: nats and bits per token, per image, and per pixel (a place of
        the image, with all its channels). ``uncoded``: the bits of indices that are equally
        likely. ``standard_error`` of the bits per image, over the images. ``likelihood``:
        ``"exact"`` or ``"bound"``, see :attr:`Prior.likelihood`. ``condition``, ``num_images``,
        ``parameters``, ``prior``, ``protocol`` and ``machine``.

    Raises:
        InputError: If the prior has no likelihood of tokens, or needs a condition that the data
            lack; or if what it computes is not finite.
        CheckpointError: If the three do not belong together.
        DataError: If there are no images.
    """
    kind = prior.likelihood
    if kind is None:
        raise InputError(
            f"a {type(prior).__name__} has no likelihood of tokens: it models continuous latents; "
            "measure it by the images it draws (--num-images)"
        )
    check_pair(prior, tokenizer)
    check_encoder(prior, encoder)
    check_shape(tokenizer, dataset)
    if not len(dataset):
        raise DataError("the data set is empty; a likelihood needs at least one image")
    tokenizer.eval()
    log_probs: list[Tensor] = []
    conditioned = False
    with evaluating(prior):
        size, rows = block_size(tokenizer), BLOCK if prior.device.type == "cpu" else batch_size
        for batch in DataLoader(dataset, batch_size=size or batch_size):
            images = batch["images"].to(tokenizer.device, tokenizer.dtype)
            indices = in_blocks(tokenizer.encode, images, size or len(images))
            condition = _condition(prior, encoder, batch)
            conditioned = condition is not None
            log_probs.append(_log_prob(prior, indices, condition, rows).double().cpu())
            if on_images is not None:
                on_images(len(images))
    nats = -torch.cat(log_probs)
    if not nats.isfinite().all():
        raise InputError(NOT_FINITE.format(prior.dtype))
    condition_name = prior.condition_name if conditioned else None
    return {
        **_numbers(nats, tokenizer),
        "likelihood": kind,
        "condition": condition_name,
        "num_images": len(nats),
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "prior": {
            "class": type(prior).__name__,
            "fingerprint": prior_fingerprint(prior),
            "tokenizer": model_fingerprint(tokenizer),
        },
        "protocol": make_protocol(
            dataset, type_name(prior.dtype), 0, {}, likelihood=kind, condition=condition_name
        ),
        "machine": describe_machine(),
    }


def _numbers(nats: Tensor, tokenizer: ImageTokenizer) -> dict[str, Any]:
    """Return the metrics, from the nats of each image in float64."""
    spec, pixels = tokenizer.token_spec, math.prod(tokenizer.image_shape[1:])
    per_image, found = nats.mean().item(), {}
    for unit, scale in (("nats", 1.0), ("bits", 1 / math.log(2))):
        value = per_image * scale
        found[f"{unit}_per_token"] = value / spec.num_tokens
        found[f"{unit}_per_image"] = value
        found[f"{unit}_per_pixel"] = value / pixels
    spread = nats.std().item() / math.sqrt(len(nats)) / math.log(2) if len(nats) > 1 else None
    uncoded = spec.bits_per_image
    return {
        "metrics": found,
        "standard_error": spread,
        "uncoded": {
            "bits_per_token": uncoded / spec.num_tokens,
            "bits_per_image": uncoded,
            "bits_per_pixel": uncoded / pixels,
        },
    }


def _condition(
    prior: Prior, encoder: TextEncoder | None, batch: dict[str, Any]
) -> Condition | None:
    """Return the classes or texts of a batch; None where it has none, or the prior takes none."""
    if encoder is not None and all(batch.get("caption", [""])):
        return encoder(batch["caption"])
    return batch["label"] if prior.num_classes and "label" in batch else None


def _log_prob(prior: Any, indices: Tensor, condition: Condition | None, rows: int) -> Tensor:
    """Return the log-probability of each image, computed in blocks of one number of rows."""
    prior.check_can_omit(condition)
    everything = torch.arange(len(indices), device=indices.device)

    def block(numbers: Tensor) -> Tensor:
        chosen = None if condition is None else condition[numbers.to(_device_of(condition))]
        return prior.log_prob(indices[numbers], chosen)

    return in_blocks(block, everything, rows)


def _device_of(condition: Condition) -> torch.device:
    return condition.device if isinstance(condition, Tensor) else condition.mask.device
