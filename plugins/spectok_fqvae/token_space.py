"""Frequency maps as tokens (FQ-VAE, Eq. 2-5 and 12), and the gated grid of its ablations."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.nn import GridTokens
from spectok.tokenizer import TokenSpace
from spectok_fqvae.filters import DynamicWeights, FilterInit, start_filters
from spectok_fqvae.graph import GraphGate

Transform = Literal["fft", "linear"]

TINY = 1e-8  # keeps the gradient of a square root finite at 0
OF_FREQUENCIES = ("bins", "shifts")  # initial filters that mean something on a spectrum alone


class FrequencyTokens(TokenSpace):
    """N filtered spectra of each of the D latent channels: U = N D tokens of the whole image.

        latents (B, D, h, w)
          | rfft2            ortho, float32                                       Eq. 2
        spectrum (B, D, h, w//2+1)
          | bases, weights   N filters per channel, weighted by the image         Eq. 3, 4
        maps (B, U, h, w//2+1)
          | analysis         each map's inner products with the rows of its head
        z (B, U, dim)
          : quantizer
        z_q (B, U, dim)
          | synthesis        a map again, in the band of its filter
          | gate             graph module, from the sizes of these maps alone     Eq. 12
          | mean over N      completes the filter                                 Eq. 5
        spectrum (B, D, h, w//2+1)
          | irfft2
        latents (B, D, h, w)

    The weights act on the way in only. They depend on the latents: on the way back they would tell
    the decoder more than the tokens do.

    Without a projection (``dim`` None) a token is the whole map, ``2 h (w//2+1)`` numbers, and the
    way back is the mean alone. With one, the maps are never formed: filter and projection are
    multiplied first, and one matrix product per channel takes spectra to vectors.

    Three controls take one part away each: ``transform="linear"`` puts the pixels themselves, two
    to a complex number, where the spectrum was, so that filters and projections are a learned
    linear map of the pixels with as many numbers; ``dynamic_weights`` off leaves the filters
    unweighted, alike for all images; ``learned_filters`` off keeps the filters where they start.

    Args:
        latent_channels: Channels D.
        num_tokens: Tokens U; D divides it.
        height: Latent height.
        width: Latent width.
        dim: Length of each token's vector; None for whole maps.
        num_heads: Projections each way, each for an equal run of consecutive tokens.
        filter_init: Initial filters; see :func:`~spectok_fqvae.filters.start_filters`.
        gate: Graph module, or None.
        transform: ``"fft"``, or ``"linear"``, which needs a ``filter_init`` without frequencies.
        dynamic_weights: Whether the weights of Eq. 4 follow the image.
        learned_filters: Whether the bases K_i are trained.
        parseval_weights: Count in whole maps, by :func:`parseval_scale`, each bin as often as it
            stands for. The distance between two maps is then that of their images.

    Raises:
        InputError: If the counts do not fit one another, or maps that are not whole are weighted.
    """

    bases: Tensor

    def __init__(
        self,
        latent_channels: int,
        num_tokens: int,
        *,
        height: int,
        width: int,
        dim: int | None,
        num_heads: int,
        filter_init: FilterInit,
        gate: GraphGate | None,
        transform: Transform = "fft",
        dynamic_weights: bool = True,
        learned_filters: bool = True,
        parseval_weights: bool = False,
    ):
        super().__init__((num_tokens,), 2 * height * (width // 2 + 1) if dim is None else dim)
        if num_tokens % latent_channels:
            raise InputError(
                f"latent_channels {latent_channels} does not divide num_tokens {num_tokens}; take "
                f"e.g. {max(num_tokens // latent_channels, 1) * latent_channels} tokens"
            )
        if num_tokens % num_heads:
            raise InputError(f"num_heads {num_heads} does not divide num_tokens {num_tokens}")
        if transform == "linear" and filter_init in OF_FREQUENCIES:
            raise InputError(
                f"filter_init {filter_init!r} orders frequencies, and transform 'linear' has none; "
                f"choose 'phase' or 'noise'"
            )
        if parseval_weights and dim is not None:
            raise InputError(
                f"parseval_weights is for whole maps, and codebook_dim {dim} projects them; set "
                f"codebook_dim=null, or leave the weights out"
            )
        if parseval_weights and transform == "linear":
            raise InputError(
                "parseval_weights counts the bins of a spectrum, and transform 'linear' has none; "
                "leave one of the two out"
            )
        self.latent_channels, self.num_heads, self.transform = latent_channels, num_heads, transform
        self.height, self.width, self.projects = height, width, dim is not None
        self.num_filters = num_tokens // latent_channels
        weights = DynamicWeights(latent_channels, self.num_filters) if dynamic_weights else None
        self.weights = weights
        start = start_filters(filter_init, self.num_filters, height, width, dim or 0)
        bases = torch.view_as_real(start.bases)  # (N, h, v, 2)
        if learned_filters:
            self.bases = nn.Parameter(bases)
        else:
            self.register_buffer("bases", bases)
        if self.projects:
            heads = (num_heads, 1, 1, 1, 1)
            self.analysis = nn.Parameter(torch.view_as_real(start.analysis).repeat(heads))
            self.synthesis = nn.Parameter(torch.view_as_real(start.synthesis).repeat(heads))
        self.gate = gate
        scale = parseval_scale(height, width) if parseval_weights else None
        self.register_buffer("scale", scale, persistent=False)

    scale: Tensor | None

    def to_vectors(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b u k"]:
        """Transform, filter, and read each map as a vector."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            spectrum = self.to_spectrum(latents)
            if self.projects:
                rows = self._per_token(self.analysis)
                flat = torch.view_as_real(spectrum).flatten(2)  # (B, D, P)
                vectors = torch.einsum("bdp,dnkp->bdnk", flat, rows)
            else:
                maps = spectrum.unsqueeze(2) * self.filters  # (B, D, N, h, v)
                vectors = torch.view_as_real(maps).flatten(3)
                vectors = vectors if self.scale is None else vectors * self.scale
            if self.weights is not None:
                vectors = vectors * self.weights(latents).unsqueeze(-1)
            return vectors.flatten(1, 2).to(self.bases.dtype)

    def to_latents(
        self, z_q: Float[Tensor, "b u k"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        """Gate and combine the maps of each channel, and transform back."""
        if keep is not None:
            raise InputError("a prefix of frequency maps does not decode on its own")
        with torch.autocast(z_q.device.type, enabled=False):
            vectors = z_q.float() if self.scale is None else z_q.float() / self.scale
            spectra = self._per_token(self.synthesis) if self.projects else None
            if self.gate is not None:
                vectors = vectors * self.gate(map_sizes(vectors, spectra)).unsqueeze(-1)
            per_channel = vectors.unflatten(1, (self.latent_channels, -1))  # (B, D, N, dim)
            if spectra is None:
                flat = per_channel.mean(2)
            else:
                flat = torch.einsum("bdnk,dnkp->bdp", per_channel, spectra) / self.num_filters
            spectrum = rearrange(flat, "b d (h v c) -> b d h v c", h=self.height, c=2)
            latents = self.from_spectrum(as_complex(spectrum))
        return latents.to(z_q.dtype)

    def to_spectrum(self, latents: Float[Tensor, "b d h w"]) -> Complex[Tensor, "b d h v"]:
        """Return what is filtered: the spectrum (Eq. 2), or the pixels in pairs."""
        if self.transform == "fft":
            return torch.fft.rfft2(latents, norm="ortho")
        padded = F.pad(latents, (0, 2 * (self.width // 2 + 1) - self.width))
        return as_complex(padded.unflatten(-1, (-1, 2)))

    def from_spectrum(self, spectrum: Complex[Tensor, "b d h v"]) -> Float[Tensor, "b d h w"]:
        """Undo :meth:`to_spectrum`."""
        if self.transform == "fft":
            return torch.fft.irfft2(spectrum, s=(self.height, self.width), norm="ortho")
        return torch.view_as_real(spectrum).flatten(-2)[..., : self.width]

    @property
    def filters(self) -> Complex[Tensor, "n h v"]:
        """The bases K_i of Eq. 4."""
        return as_complex(self.bases)

    def _per_token(self, rows: Tensor) -> Float[Tensor, "d n k p"]:
        """Return each token's rows times its conjugate filter, as real vectors.

        ``Re <row, K s> = Re <conj(K) row, s>``: on the way in this filters the spectrum before the
        projection; on the way back it confines a map to the band of its filter.
        """
        each = as_complex(rows).repeat_interleave(self.num_tokens // self.num_heads, dim=0)
        per_channel = each.unflatten(0, (self.latent_channels, -1))  # (D, N, dim, h, v)
        filtered = per_channel * self.filters.conj().unsqueeze(1)
        return torch.view_as_real(filtered).flatten(3)


class GatedGridTokens(GridTokens):
    """VQ-VAE's grid, with channels corrected by the graph module: rows E and G of Table 2.

    Args:
        height: Latent height.
        width: Latent width.
        dim: Latent channels: the length of a vector, and the number of graph nodes.
        gate: Graph module, or None.
    """

    def __init__(self, height: int, width: int, dim: int, gate: GraphGate | None):
        super().__init__(height, width, dim)
        self.gate = gate

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        """Put the vectors back on the grid and gate the channels by their means."""
        latents = super().to_latents(z_q, keep)
        if self.gate is None:
            return latents
        return latents * self.gate(latents.mean((2, 3)))[:, :, None, None]


def as_complex(parts: Float[Tensor, "*shape 2"]) -> Complex[Tensor, "*shape"]:
    """Join real and imaginary parts, in float32: a CPU has no half-precision FFT."""
    return torch.view_as_complex(parts.float().contiguous())


def parseval_scale(height: int, width: int) -> Float[Tensor, "p"]:
    """Return factors for a flattened half-plane spectrum that make its length that of its image.

    A real FFT stores each column between the first and that of the Nyquist frequency once, although
    it stands for two: its squares count twice. By Parseval's theorem the sum of squares is then
    that of the pixels, with an orthonormal transform. This is exact for the spectrum of a real
    image. A complex filter can make the two outer columns something that no real image has; the
    inverse transform drops that part, but the vector's length has it.

    Args:
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        1 or sqrt(2) for each of the ``2 h (w//2+1)`` numbers, laid out as (row, column, part).
    """
    columns = torch.full((width // 2 + 1,), math.sqrt(2))
    columns[0] = 1
    if width % 2 == 0:
        columns[-1] = 1
    return columns.repeat_interleave(2).repeat(height)


def map_sizes(
    vectors: Float[Tensor, "b u k"], spectra: Float[Tensor, "d n k p"] | None
) -> Float[Tensor, "b u"]:
    """Return the root mean square magnitude of each quantised map.

    The paper pools by the mean, but the mean of a spectrum is a single pixel of its image. With a
    projection the size is a quadratic form of the short vector; the map is not formed.

    Args:
        vectors: Quantised vectors.
        spectra: The spectra that the numbers of each vector weight; None if vectors are maps.
    """
    if spectra is None:
        return (vectors.square().sum(-1) / (vectors.shape[-1] / 2) + TINY).sqrt()
    gram = torch.einsum("dnkp,dnlp->dnkl", spectra, spectra).flatten(0, 1)
    energy = torch.einsum("buk,ukl,bul->bu", vectors, gram, vectors)
    return (energy.clamp_min(0) / (spectra.shape[-1] / 2) + TINY).sqrt()
