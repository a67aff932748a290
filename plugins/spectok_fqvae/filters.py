"""The dynamic filter bank of FQ-VAE (Eq. 3, 4), and initial filters and projections."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from spectok.errors import InputError

MLP_WIDTH = 64
FilterInit = Literal["noise", "phase", "bins", "shifts"]


class DynamicWeights(nn.Module):
    """How strongly each filter basis acts on each channel of an image (Eq. 4).

    An MLP on the mean and deviation of every latent channel gives N logits per channel; their
    softmax weights the bases. It is multiplied by N, so that a uniform softmax leaves the size of
    the spectrum unchanged; the mean over N on the way back undoes the factor. The last layer starts
    at zero: at first the filter bank is the same for all images.

    The MLP sees the latents alone, never features of the encoder, so that latents from a diffusion
    model can be quantised too.

    Args:
        latent_channels: Channels D.
        num_filters: Bases N.
    """

    def __init__(self, latent_channels: int, num_filters: int):
        super().__init__()
        self.num_filters = num_filters
        self.hidden = nn.Linear(2 * latent_channels, MLP_WIDTH)
        self.logits = nn.Linear(MLP_WIDTH, latent_channels * num_filters)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d n"]:
        """Return weights with mean 1 over the filters."""
        pixels = latents.flatten(2)
        statistics = torch.cat([pixels.mean(-1), pixels.std(-1, correction=0)], dim=1)  # (B, 2D)
        statistics = statistics.to(self.hidden.weight.dtype)
        logits = self.logits(nn.functional.gelu(self.hidden(statistics))).to(latents.dtype)
        per_channel = logits.unflatten(1, (-1, self.num_filters))  # (B, D, N)
        return self.num_filters * torch.softmax(per_channel, dim=-1)


class FilterBank(NamedTuple):
    """Initial values of the bases and of the projections from filtered spectra and back.

    Attributes:
        bases: The K_i of Eq. 4, over the h x (w//2+1) bins of a real FFT.
        analysis: Rows whose real inner products with a filtered spectrum are a token's vector.
        synthesis: The spectra that the numbers of a token's vector weight.
    """

    bases: Complex[Tensor, "n h v"]
    analysis: Complex[Tensor, "k h v"]
    synthesis: Complex[Tensor, "k h v"]


def start_filters(
    init: FilterInit, num_filters: int, height: int, width: int, dim: int
) -> FilterBank:
    """Return an initial filter bank; with bins or shifts, there and back is a low-pass.

    Args:
        init: ``"noise"``: all-pass, 1 + 0.02 noise. ``"phase"``: all-pass with random phases.
            ``"bins"``: filter i passes every N-th bin in order of frequency, and a vector holds
            the lowest bins of its filter. ``"shifts"``: filter i is a translation, and a vector
            holds the lowest cosines of the patch moved to the origin: local tokens.
        num_filters: Bases N.
        height: Latent height.
        width: Latent width.
        dim: Length k of a vector; 0 for whole spectra, which need no projection.
    """
    shape = (num_filters, height, width // 2 + 1)
    if init == "bins":
        check_pairs(dim)
    if torch.get_default_device().type == "meta":  # only shapes are asked for
        parts = [torch.empty(count, *shape[1:], dtype=torch.complex64) for count in (dim, dim)]
        return FilterBank(torch.empty(shape, dtype=torch.complex64), *parts)
    if init == "bins":
        return _interleaved_bins(num_filters, height, width, dim)
    if init == "shifts":
        return _shifted_patches(num_filters, height, width, dim)
    if init == "phase":
        bases = torch.polar(torch.ones(shape), 2 * math.pi * torch.rand(shape))
    else:
        bases = 1 + 0.02 * torch.randn(shape, dtype=torch.complex64)
    bins = height * (width // 2 + 1)
    rows = torch.randn(dim, *shape[1:], dtype=torch.complex64) * bins**-0.5  # unit length
    return FilterBank(bases, rows, rows * (bins / max(dim, 1)))


def _interleaved_bins(num_filters: int, height: int, width: int, dim: int) -> FilterBank:
    """Deal out the bins to the filters from low to high; each is two numbers of a vector."""
    order, mirrored = independent_bins(height, width)
    kept = order[: num_filters * dim // 2]
    place = torch.arange(len(kept))
    bins = height * (width // 2 + 1)
    bases = torch.zeros(num_filters, bins, dtype=torch.complex64)
    bases[place % num_filters, kept] = 1
    rows = torch.zeros(dim, bins, dtype=torch.complex64)
    rows.real[2 * (place // num_filters), kept] = 1
    rows.imag[2 * (place // num_filters) + 1, kept] = 1
    back = num_filters * rows * torch.where(mirrored, 2.0, 1.0)
    shape = (height, width // 2 + 1)
    return FilterBank(*(part.unflatten(1, shape) for part in (bases, rows, back)))


def check_pairs(dim: int) -> None:
    """Check that a vector holds pairs of numbers.

    Raises:
        InputError: If not.
    """
    if dim % 2:
        raise InputError(
            f"codebook_dim {dim} is odd; filter_init 'bins' needs pairs, e.g. {dim + 1}"
        )


def independent_bins(height: int, width: int) -> tuple[Int[Tensor, "m"], Tensor]:
    """Return the independent bins of a real FFT, low frequencies first.

    In the columns 0 and w/2 the rows k and h-k are conjugates of each other. One of them is left
    out; the other alone gives half of the wave.

    Returns:
        Flat indices, and for every bin whether its mirror image is left out.
    """
    row, column = torch.arange(height)[:, None], torch.arange(width // 2 + 1)[None]
    on_edge = (column == 0) | (2 * column == width)
    dropped = on_edge & (2 * row > height)
    mirrored = on_edge & (row > 0) & (2 * row < height)
    frequency = torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2
    order = torch.where(dropped, torch.inf, frequency).flatten().argsort(stable=True)
    return order[: int((~dropped).sum())], mirrored.flatten()


def _shifted_patches(num_filters: int, height: int, width: int, dim: int) -> FilterBank:
    """Move the patches of a grid to the origin by phase ramps, and read cosines there."""
    rows = max(r for r in range(1, math.isqrt(num_filters) + 1) if num_filters % r == 0)
    columns = num_filters // rows
    down = torch.arange(rows)[:, None, None, None] * (height / rows)
    across = torch.arange(columns)[None, :, None, None] * (width / columns)
    ramp = down * torch.fft.fftfreq(height)[:, None] + across * torch.fft.rfftfreq(width)
    bases = torch.polar(torch.ones_like(ramp), 2 * math.pi * ramp).flatten(0, 1)
    patch = torch.zeros(dim, height, width)
    waves = cosines(round(height / rows), round(width / columns), dim)
    patch[: len(waves), : waves.shape[1], : waves.shape[2]] = waves
    spectra = torch.fft.rfft2(patch, norm="ortho")
    column = torch.arange(width // 2 + 1)
    twice = torch.where((column == 0) | (2 * column == width), 1.0, 2.0)  # half-plane to plane
    return FilterBank(bases, spectra * twice, spectra * num_filters)


def cosines(height: int, width: int, count: int) -> Float[Tensor, "k h w"]:
    """Return orthonormal products of two cosines (DCT-II), low frequencies first."""
    parts = []
    for size in (height, width):
        angle = math.pi / size * torch.outer(torch.arange(size), torch.arange(size) + 0.5)
        parts.append(torch.nn.functional.normalize(angle.cos(), dim=1))
    waves = torch.einsum("ky,lx->klyx", *parts).flatten(0, 1)
    k, j = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    return waves[(k**2 + j**2).flatten().argsort(stable=True)[:count]]
