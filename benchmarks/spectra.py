"""Spectra of images and feature maps, band by band; shared by several benchmarks."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from spectok.images import to_uint8
from spectok.metrics import SetMetric

FLOOR = 1e-3  # of amplitudes; rounding to 256 levels alone makes 2e-3
EDGES = (0.0, 0.0625, 0.125, 0.25, 0.375, 0.75)  # cycles per pixel; the corner is at 0.707


def radial_frequencies(maps: Tensor) -> Tensor:
    """Return the distance of each frequency of a two-dimensional FFT from zero, (H, W).

    In cycles per pixel of the map.
    """
    down, across = (torch.fft.fftfreq(n) for n in maps.shape[-2:])
    return torch.hypot(down[:, None], across)


class BandErrors(SetMetric):
    """What reconstructions keep of each ring of frequencies, over a set of images.

    Images are taken to 8 bits, as by all image metrics, and scaled to [0, 1].

    * ``error``: sum of ``|F_out - F_in|²`` over sum of ``|F_in|²`` of the ring: 1 is what zero
      would have.
    * ``energy``: sum of ``|F_out|²`` over sum of ``|F_in|²``: below 1 the ring is blurred.
    * ``log amplitude``: mean absolute difference of log10 amplitudes, each at least 0.001.
    """

    def __init__(self) -> None:
        self.rings = list(itertools.pairwise(EDGES))
        self.sums = torch.zeros(len(self.rings), 3, dtype=torch.float64)
        self.counts = torch.zeros(len(self.rings), 2, dtype=torch.float64)  # energy, frequencies

    def add(self, images: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Add a batch; see :class:`spectok.metrics.SetMetric`."""
        wanted, output = (
            torch.fft.fft2(to_uint8(x) / 255, norm="ortho") for x in (images, reconstruction)
        )
        distance = radial_frequencies(images)
        for ring, (low, high) in enumerate(self.rings):
            inside = (distance >= low) & (distance < high)
            a, b = output[..., inside], wanted[..., inside]
            logs = [part.abs().clamp_min(FLOOR).log10() for part in (a, b)]
            self.sums[ring, 0] += (a - b).abs().square().sum()
            self.sums[ring, 1] += a.abs().square().sum()
            self.sums[ring, 2] += (logs[0] - logs[1]).abs().sum()
            self.counts[ring, 0] += b.abs().square().sum()
            self.counts[ring, 1] += b.numel()

    def result(self) -> dict[str, float]:
        """Return the three numbers of each ring, by name."""
        found = {}
        for (low, high), sums, (energy, count) in zip(self.rings, self.sums, self.counts):
            name = f"{low:g} to {high:g} cycles"
            found[f"error, {name}"] = float(sums[0] / energy)
            found[f"energy, {name}"] = float(sums[1] / energy)
            found[f"log amplitude, {name}"] = float(sums[2] / count)
        return found
