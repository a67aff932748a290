"""A grid of tokens whose codes are not as long as the latents have channels."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.nn import GridTokens


class ProjectedGridTokens(GridTokens):
    """One vector per latent pixel, through a linear map each way.

    Args:
        height: Latent height.
        width: Latent width.
        latent_channels: Latent channels.
        dim: Length of a vector.
    """

    def __init__(self, height: int, width: int, latent_channels: int, dim: int):
        super().__init__(height, width, dim)
        self.enter = nn.Linear(latent_channels, dim)
        self.leave = nn.Linear(dim, latent_channels)

    def to_vectors(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Read the latent pixels in raster order and project each."""
        return self.enter(super().to_vectors(latents))

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Project the vectors back and put them on the grid."""
        return super().to_latents(self.leave(z_q), keep)
