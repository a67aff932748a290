"""The contract of token spaces: latents to the vectors that are quantised, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok.sizes import scaled


class TokenSpace(nn.Module, ABC):
    """How latents become the N vectors that are quantised, and how these become latents again.

    Args:
        shape: Layout of the N tokens: ``(T,)`` or ``(h, w)``.
        dim: Length D of each vector.
    """

    def __init__(self, shape: tuple[int, ...], dim: int):
        super().__init__()
        self.shape, self.dim = tuple(shape), dim

    @property
    def num_tokens(self) -> int:
        """Number N of vectors per image."""
        return int(torch.Size(self.shape).numel())

    @abstractmethod
    def to_vectors(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Turn latents into the vectors that are quantised."""

    @abstractmethod
    def to_latents(
        self, z_q: Float[Tensor, "b n d"], keep: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Turn quantised vectors back into latents.

        Args:
            z_q: Quantised vectors; nothing else may reach the decoder.
            keep: Number of leading tokens to use per image, if a prefix decodes; None for all.
        """

    def rescale(self, rows: Fraction, columns: Fraction) -> None:
        """Change the layout to that of images of another size: called on a copy.

        Args:
            rows: New height of the images / height they had.
            columns: The same of the width.
        """
        height, width = self.shape
        self.shape = (scaled(height, rows), scaled(width, columns))
