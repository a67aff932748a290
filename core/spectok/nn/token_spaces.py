"""The two token spaces that tokenizers share: a grid of local vectors, a list of global ones."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.errors import InputError
from spectok.tokenizer import TokenSpace


class GridTokens(TokenSpace):
    """One vector per latent pixel: the token space of VQ-VAE and its successors.

    Args:
        height: Latent height.
        width: Latent width.
        dim: Latent channels, and so the length of a vector.
    """

    def __init__(self, height: int, width: int, dim: int):
        super().__init__((height, width), dim)

    def to_vectors(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
        """Read the latent pixels in raster order."""
        return rearrange(latents, "b d h w -> b (h w) d")

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        """Put the vectors back on the grid."""
        if keep is not None:
            raise InputError("a prefix of grid tokens does not decode on its own")
        return rearrange(z_q, "b (h w) d -> b d h w", h=self.shape[0])


class ListTokens(TokenSpace):
    """One vector per latent channel, through affine heads (QG-VAE, section 3.2).

    Each of the C channels is a whole feature map. Its pixels form one long vector, which an affine
    map takes to D dimensions. Heads split the C tokens into contiguous groups, each with affine
    maps of its own. On the way back, a learned offset is added to each token's vector.

    Args:
        num_tokens: Latent channels C, one token each.
        height: Latent height.
        width: Latent width.
        dim: Length D of each token's vector.
        num_heads: Affine maps each way; divides ``num_tokens``.
    """

    def __init__(self, num_tokens: int, height: int, width: int, dim: int, num_heads: int):
        super().__init__((num_tokens,), dim)
        if num_heads < 1 or num_tokens % num_heads:
            raise InputError(f"num_heads {num_heads} does not divide num_tokens {num_tokens}")
        self.height, self.num_heads, pixels = height, num_heads, height * width
        self.to_token = nn.Parameter(_affine_init(num_heads, pixels, dim))
        self.to_token_bias = nn.Parameter(torch.zeros(num_heads, 1, dim))
        self.to_map = nn.Parameter(_affine_init(num_heads, dim, pixels))
        self.to_map_bias = nn.Parameter(torch.zeros(num_heads, 1, pixels))
        self.offset = nn.Parameter(torch.empty(num_tokens, dim).uniform_(-0.5, 0.5))

    def to_vectors(self, latents: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n d"]:
        """Compress each channel's map into one vector (Eq. 5 of QG-VAE)."""
        return self._apply_heads(latents.flatten(2), self.to_token, self.to_token_bias)

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b n h w"]:
        """Expand each vector into a map; vectors from number ``keep`` on are zero (Eq. 9)."""
        vectors = z_q + self.offset
        if keep is not None:
            place = torch.arange(self.num_tokens, device=z_q.device)
            vectors = vectors * (place < keep[:, None]).unsqueeze(-1)  # (B, N, D)
        maps = self._apply_heads(vectors, self.to_map, self.to_map_bias)
        return rearrange(maps, "b n (h w) -> b n h w", h=self.height)

    def _apply_heads(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        grouped = rearrange(x, "b (k n) i -> k (b n) i", k=self.num_heads)
        mapped = torch.baddbmm(bias.to(x.dtype), grouped, weight.to(x.dtype))
        return rearrange(mapped, "k (b n) o -> b (k n) o", b=x.shape[0])


def _affine_init(heads: int, fan_in: int, fan_out: int) -> Tensor:
    bound = fan_in**-0.5  # the initial range of torch's own linear layers
    return torch.empty(heads, fan_in, fan_out).uniform_(-bound, bound)
