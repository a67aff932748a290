"""Ways to read the latents of an autoencoder as tokens: a grid, a global list, frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok import TokenSpace
from spectok.errors import DataError
from spectok.nn import ListTokens

Kind = Literal["grid", "global", "frequency"]
LEAST = 1e-6
"""Deviation below which a channel counts as constant, relative to the largest of its model."""


class GlobalTokens(TokenSpace):
    """Tokens of the whole image: QG-VAE's, with a convolution that makes as many maps as tokens.

    Args:
        channels: Latent channels c.
        num_tokens: Tokens N.
        height: Latent height.
        width: Latent width.
        dim: Length of each token's vector.
    """

    def __init__(self, channels: int, num_tokens: int, *, height: int, width: int, dim: int):
        super().__init__((num_tokens,), dim)
        self.spread = nn.Conv2d(channels, num_tokens, 1)
        self.lists = ListTokens(num_tokens, height, width, dim, num_heads=1)
        self.gather = nn.Conv2d(num_tokens, channels, 1)

    def to_vectors(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Mix the channels into N maps, and compress each into one vector."""
        return self.lists.to_vectors(self.spread(latents))

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Expand each vector into a map, and mix the maps back into channels."""
        return self.gather(self.lists.to_latents(z_q, keep))


class FrequencyTokens(TokenSpace):
    """One vector per frequency of the latents, of all channels, from low to high.

    The two-dimensional discrete cosine transform (DCT-II, orthonormal) of each channel has as many
    coefficients as there are places. Those of one frequency, divided by their measured deviation,
    are a vector. The first k tokens decode to the latents without the frequencies after them.

    This is not the token space of FQ-VAE, whose tokens are whole maps behind learned filters.

    Args:
        height: Latent height.
        width: Latent width.
        channels: Latent channels, and so the length of a vector.
    """

    def __init__(self, height: int, width: int, channels: int):
        super().__init__((height * width,), channels)
        self.height, self.width = height, width
        rows, columns = torch.arange(height), torch.arange(width)
        distance = (rows[:, None] / height) ** 2 + (columns / width) ** 2
        self.register_buffer("down", cosines(height), persistent=False)
        self.register_buffer("across", cosines(width), persistent=False)
        order = distance.flatten().argsort(stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)
        self.register_buffer("deviation", torch.ones(height * width, channels))

    down: Tensor
    across: Tensor
    order: Tensor
    place: Tensor
    deviation: Tensor

    def to_vectors(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """Transform, order by frequency, and scale."""
        vectors = self.transform(latents.float()) / self.deviation.float()
        return vectors.to(latents.dtype)

    def to_latents(
        self, z_q: Float[Tensor, "b n c"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Scale back, drop what comes after ``keep`` tokens, and transform back."""
        vectors = z_q.float() * self.deviation.float()
        if keep is not None:
            number = torch.arange(self.num_tokens, device=z_q.device)
            vectors = vectors * (number < keep[:, None]).unsqueeze(-1)
        spectrum = rearrange(vectors[:, self.place], "b (h w) c -> b c h w", h=self.height)
        with torch.autocast(z_q.device.type, enabled=False):
            latents = self.down.float().T @ spectrum @ self.across.float()
        return latents.to(z_q.dtype)

    def transform(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """Return the coefficients of each frequency, unscaled, from low to high."""
        with torch.autocast(latents.device.type, enabled=False):
            spectrum = self.down.float() @ latents @ self.across.float().T
        return rearrange(spectrum, "b c h w -> b (h w) c")[:, self.order]


class StandardTokens(TokenSpace):
    """Another token space on latents whose channels have mean 0 and deviation 1 over the data.

    Args:
        inner: The token space.
        channels: Latent channels.
    """

    mean: Tensor
    deviation: Tensor
    num_measured: Tensor

    def __init__(self, inner: TokenSpace, channels: int):
        super().__init__(inner.shape, inner.dim)
        self.inner = inner
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("num_measured", torch.zeros((), dtype=torch.int64))

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Take the layout of the inner token space at another size; the statistics stay."""
        self.shape = self.inner.shape

    def standardize(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Take the mean away and divide by the deviation."""
        return (latents - _per_channel(self.mean, latents)) / _per_channel(self.deviation, latents)

    def to_vectors(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Standardise the latents, and read them as vectors."""
        return self.inner.to_vectors(self.standardize(latents))

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Turn vectors into standardised latents, and these into the autoencoder's."""
        latents = self.inner.to_latents(z_q, keep)
        return latents * _per_channel(self.deviation, latents) + _per_channel(self.mean, latents)

    @torch.no_grad()
    def measure(self, batches: Iterable[Float[Tensor, "b c h w"]]) -> None:
        """Set the statistics to those of all latents of the training data.

        Args:
            batches: The latents, in an order that is always the same; read once.

        Raises:
            DataError: If latents are not finite, or do not differ at all.
        """
        frequencies = self.inner if isinstance(self.inner, FrequencyTokens) else None
        sums, energy, count, images = torch.zeros(2, len(self.mean)).double(), 0.0, 0, 0
        for latents in batches:
            values = latents.double().transpose(0, 1).flatten(1).cpu()  # (c, b h w)
            sums += torch.stack([values.sum(1), values.square().sum(1)])
            count, images = count + values.shape[1], images + len(latents)
            if frequencies is not None:
                energy += frequencies.transform(latents.float()).double().square().sum(0).cpu()
        mean = sums[0] / max(count, 1)
        deviation = (sums[1] / max(count, 1) - mean.square()).clamp(min=0).sqrt()
        if not (mean.isfinite() & deviation.isfinite()).all() or deviation.amax() <= 0:
            raise DataError(
                "the autoencoder's latents of this data are not finite, or all alike; check the "
                "images, and the autoencoder's weights"
            )
        deviation = deviation.clamp(min=LEAST * deviation.amax().item())
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.num_measured.fill_(images)
        if frequencies is not None:
            maps = mean.float()[None, :, None, None]
            maps = maps.expand(1, -1, frequencies.height, frequencies.width)
            # The mean of a channel has a coefficient at frequency 0 alone.
            constant = frequencies.transform(maps)[0].double()
            energy = (energy / images - constant.square()) / deviation.square()
            root = energy.clamp(min=0).sqrt()
            frequencies.deviation.copy_(root.clamp(min=LEAST * root.amax().item()))


def cosines(size: int) -> Float[Tensor, "k n"]:
    """Return the orthonormal matrix of the DCT-II: row k is the cosine of frequency k."""
    places = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * places[:, None] * (places + 0.5)) * math.sqrt(2 / size)
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]]).float()


def _per_channel(values: Tensor, latents: Tensor) -> Tensor:
    return values.to(latents.dtype)[:, None, None]
