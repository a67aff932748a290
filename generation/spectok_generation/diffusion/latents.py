"""Latents to train on: computed from the images of each batch, standardised by one measurement.

Nothing is cached: the encoder costs a fraction of the trained network, latents may be larger than
their images, and images can be augmented differently in each epoch.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from spectok import ImageTokenizer
from spectok.distributed import sum_over_ranks, world
from spectok.errors import DataError

NUM_MEASURED = 4096
"""Most images that statistics are measured on, spread evenly over the data."""


@torch.no_grad()
def encode_latents(
    tokenizer: ImageTokenizer, images: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b lc lh lw"]:
    """Encode images in float32, even under autocast."""
    with torch.autocast(images.device.type, enabled=False):
        return tokenizer.encode_latents(images.to(tokenizer.dtype)).float()


def measure_latents(
    tokenizer: ImageTokenizer, dataset: Any, batch_size: int = 64
) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Return the mean and standard deviation of each latent channel, over images and places.

    Measured on at most :data:`NUM_MEASURED` images; each process does its share.

    Args:
        tokenizer: A trained tokenizer on the device to run on; it is put into eval mode.
        dataset: A :class:`spectok.data.ImageDataset`.
        batch_size: Images encoded at once.

    Raises:
        DataError: If there are no images, or an encoded one is not finite.
    """
    if len(dataset) == 0:
        raise DataError("there are no images to measure latents on; check the data")
    tokenizer.eval()
    rank, size = world()
    rows = torch.linspace(0, len(dataset) - 1, min(len(dataset), NUM_MEASURED)).long().tolist()
    channels = tokenizer.latent_shape[0]
    # Apple's MPS has no float64.
    device = torch.device("cpu") if tokenizer.device.type == "mps" else tokenizer.device
    sums = torch.zeros(3, channels, dtype=torch.float64, device=device)
    # Its own generator: drawing from the global one would change the training that follows.
    share = Subset(dataset, rows[rank::size])
    for batch in DataLoader(share, batch_size, generator=torch.Generator()):
        latents = (
            encode_latents(tokenizer, batch["images"].to(tokenizer.device)).to(device).double()
        )
        values = latents.transpose(0, 1).flatten(1)  # (c, b * h * w)
        sums += torch.stack([torch.ones_like(values), values, values**2]).sum(2)
    count, total, squares = sum_over_ranks(sums)[0]
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    if not (mean.isfinite() & std.isfinite()).all():
        raise DataError("the tokenizer's latents are not finite; train it again")
    return mean.float(), std.float()
