"""A codebook on the unit sphere, searched by angle and moved by running means."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok.quantizers import RunningQuantizer, nearest_codes


class CosineQuantizer(RunningQuantizer):
    """Vector quantisation by the angle between vector and code (ViT-VQGAN; FA-VAE, section 3.1.2).

    Codes have length one. A vector chooses the code of the largest cosine. The code then moves
    ``(1 - decay)`` of the way towards the mean direction of the vectors that chose it, and is
    scaled back to length one. The commitment term compares the code with the vector itself, not
    with its direction, and so pulls the encoder to the sphere as well.

    With ``revive_below`` above 0, rarely chosen codes are set to directions of the batch: on the
    first step all codes that nothing chose, later those whose running frequency is too low.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook.
        num_codebooks: Codebooks, each for an equal run of consecutive positions.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        decay: How much of a code stays in each step.
        revive_below: Fraction of the uniform share 1/K below which a code is revived; 0, as in the
            paper, never revives.
        revive_every: Optimiser steps between checks for codes to revive.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_codebooks: Annotated[int, Field(ge=1)] = 1,
        commitment_weight: Annotated[float, Field(ge=0)] = 1.0,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.8,
        revive_below: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        revive_every: Annotated[int, Field(ge=1)] = 10,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            commitment_weight=commitment_weight,
            revive_below=revive_below,
            revive_every=revive_every,
            starts_on_data=revive_below > 0,
        )
        self.decay = decay
        self.codebook.copy_(F.normalize(self.codebook, dim=-1))

    def search(self, z: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"]:
        """Return the code of the largest cosine: among unit vectors, the nearest one."""
        indices = nearest_codes(self.by_codebook(F.normalize(z, dim=-1)), self.codebook)
        return rearrange(indices, "g (b s) -> b (g s)", b=z.shape[0])

    def followed(self, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Follow directions."""
        return F.normalize(z, dim=-1)

    def move_codes(self, counts: Float[Tensor, "g k"], sums: Float[Tensor, "g k d"]) -> None:
        """Turn each chosen code towards its mean direction."""
        chosen = (counts > 0).unsqueeze(-1)
        turned = self.codebook.lerp(F.normalize(sums, dim=-1), 1 - self.decay)
        self.codebook.copy_(torch.where(chosen, F.normalize(turned, dim=-1), self.codebook))
