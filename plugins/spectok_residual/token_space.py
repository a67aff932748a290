"""Blocks of latent pixels as vectors."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError
from spectok.tokenizer import TokenSpace


class BlockTokens(TokenSpace):
    """One vector per block of latent pixels: the pixels one after another, in raster order.

    Known as pixel unshuffle, and pixel shuffle on the way back; nothing is lost.

    Args:
        height: Latent height, divisible by ``block_size``.
        width: Latent width, divisible by ``block_size``.
        channels: Latent channels.
        block_size: Height and width r of a block; vectors have length r²·channels.
    """

    def __init__(self, height: int, width: int, channels: int, block_size: int):
        if height % block_size or width % block_size:
            raise InputError(
                f"block_size {block_size} does not divide latents of {height}×{width}; choose a "
                f"divisor, or images of another size"
            )
        shape = (height // block_size, width // block_size)
        super().__init__(shape, block_size**2 * channels)
        self.block_size = block_size

    def to_vectors(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Collect the pixels of each block."""
        return rearrange(
            latents,
            "b c (h r) (w s) -> b (h w) (r s c)",
            r=self.block_size,
            s=self.block_size,
        )

    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Put the pixels back."""
        if keep is not None:
            raise InputError("a prefix of blocks does not decode on its own")
        return rearrange(
            z_q,
            "b (h w) (r s c) -> b c (h r) (w s)",
            h=self.shape[0],
            r=self.block_size,
            s=self.block_size,
        )
