"""DQ-VAE's two grains: which regions of an image get one code, and which get four."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from spectok.device import send
from spectok.distributed import draw_per_sample
from spectok.nn import VQGANEncoder
from spectok.nn.vqgan import group_norm
from spectok.quantizers import straight_through, sum_over_ranks, world
from spectok.sizes import scaled

SMALLEST = 1e-6
"""Uniform numbers keep this far from 0 and 1, where their logits are infinite."""


class GrainRouter(nn.Module):
    """Says how much each region needs the fine grain (Huang et al. 2023, dynamic grained coding).

    Both grains are normalised, the fine one averaged over each region, and two layers read them
    side by side. The paper's softmax over two grains depends only on the difference of two logits,
    which is what this returns.

    Args:
        dim: Channels of either grain.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.coarse_norm, self.fine_norm = group_norm(dim), group_norm(dim)
        self.average = nn.AvgPool2d(2)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * dim, 2 * dim, 1), nn.SiLU(), nn.Conv2d(2 * dim, 1, 1)
        )

    def forward(
        self, coarse: Float[Tensor, "b d h w"], fine: Float[Tensor, "b d h2 w2"]
    ) -> Float[Tensor, "b h w"]:
        """Return the logit of the fine grain for each region."""
        both = [self.coarse_norm(coarse), self.average(self.fine_norm(fine))]
        return self.layers(torch.cat(both, dim=1)).squeeze(1)


class DualGrains(nn.Module):
    """How latents become one vector per place of the finer grid, alike within a coarse region.

    A region is a block of 2×2 latent pixels. If its grain is fine, each pixel is a vector; if it is
    coarse, one vector, from a further network that halves the latents, stands at all four places.

    Args:
        size: Height and width of the latents; even.
        dim: Channels of the latents, and length of a vector.
        channels: Channels of the network between the grains, before the multipliers.
        multipliers: Channels at the size of the latents and at that of the regions, as multiples.
        num_blocks: Residual blocks at either size.
        attention: Whether each residual block at the regions' size is followed by attention.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention: bool,
    ):
        super().__init__()
        self.shape, self.dim = (size, size), dim
        self.coarsen = VQGANEncoder(
            dim,
            dim,
            image_size=size,
            channels=channels,
            channel_multipliers=multipliers,
            num_blocks=num_blocks,
            attention_sizes=(size // 2,) if attention else (),
        )
        self.router = GrainRouter(dim)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Layouts of the regions and of the places."""
        height, width = self.shape
        return (height // 2, width // 2), (height, width)

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Change the layout to that of images of another size: called on a copy."""
        height, width = self.shape
        self.shape = (scaled(height, rows), scaled(width, columns))

    def to_vectors(
        self, latents: Float[Tensor, "b d h w"], *, draw: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b rh rw"]]:
        """Return the vectors of all places in raster order, and each region's grain: 1 is fine.

        Args:
            latents: The fine grain.
            draw: Whether grains are drawn at random, with a gradient, or the likelier ones taken.
        """
        coarse = self.coarsen(latents)
        logits = self.router(coarse, latents).float()
        gate = draw_gates(logits) if draw else (logits > 0).float()
        share = at_places(gate).unsqueeze(1)  # (B, 1, h, w)
        mixed = share * latents + (1 - share) * at_places(coarse)
        return rearrange(mixed, "b d h w -> b (h w) d"), gate

    def to_latents(self, z_q: Float[Tensor, "b n d"]) -> Float[Tensor, "b d h w"]:
        """Put the vectors back on the grid."""
        return rearrange(z_q, "b (h w) d -> b d h w", h=self.shape[0])

    def repeat_first(
        self, places: Num[Tensor, "b n c"], fine: Bool[Tensor, "b rh rw"]
    ) -> Num[Tensor, "b n c"]:
        """Let each coarse region have at all four places what it has at the first.

        Args:
            places: Vectors or indices of all places.
            fine: Which regions are fine.
        """
        grid = rearrange(places, "b (h w) c -> b c h w", h=self.shape[0])
        first = at_places(grid[..., ::2, ::2])
        chosen = torch.where(at_places(fine).unsqueeze(1), grid, first)
        return rearrange(chosen, "b c h w -> b (h w) c")


def at_places(regions: Num[Tensor, "*b h w"] | Bool[Tensor, "*b h w"]) -> Tensor:
    """Repeat the value of each region at its four places."""
    return repeat(regions, "... h w -> ... (h r) (w s)", r=2, s=2)


def draw_gates(logits: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Draw grains, 0 or 1, by the Gumbel-softmax of two classes, hard, at temperature 1.

    Of two Gumbel variables only the difference counts, and that is the logit of one uniform number
    u: the gate is sigmoid(logit + log u - log(1 - u)), rounded. The gradient is the sigmoid's (Jang
    et al. 2017, straight-through).
    """
    uniform = send(draw_per_sample(logits.numel()).view(logits.shape), logits.device)
    soft = (logits + uniform.logit(SMALLEST)).sigmoid()
    return straight_through(soft, (soft > 0.5).to(soft.dtype))


def budget_loss(gates: Float[Tensor, "b h w"], target: float) -> Float[Tensor, ""]:
    """Return how far the batch's mean share of each grain is from its target.

    The sum over both grains of (share - target)²; here twice that of the fine one. A batch is that
    of all ranks.

    Args:
        gates: 1 for fine regions, 0 for coarse ones; of a training step on every rank.
        target: Target share of fine regions.
    """
    share = gates.mean()
    over_ranks = sum_over_ranks(share.detach())[0] / world()[1]
    return 2 * (straight_through(share, over_ranks) - target).square()
