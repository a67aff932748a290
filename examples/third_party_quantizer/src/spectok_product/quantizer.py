"""Product quantisation: Jégou, Douze, Schmid, IEEE TPAMI 33(1), 2011."""

from __future__ import annotations

from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import InputError
from spectok.quantizers import (
    Quantizer,
    QuantizerLevel,
    QuantizerOutput,
    codebook_losses,
    nearest_codes,
    straight_through,
)


class ProductQuantizer(Quantizer):
    """Splits each vector into parts and quantises each part with a codebook of its own.

    P parts with K codes each stand for K^P different vectors, at the memory and search time of P K:
    since the squared distance is a sum over parts, searching each part alone finds the nearest of
    all K^P. Each part is one level of the ``TokenSpec``, so an image of N vectors has N P
    tokens. Codes are trained by gradient (van den Oord et al. 2017, Eq. 3).

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per codebook.
        num_parts: Parts P; divides ``dim``.
        codebook_weight: Weight of ``|sg[z] - e|^2``, which moves the codes.
        commitment_weight: Weight of ``|z - sg[e]|^2``, which moves the encoder.

    Raises:
        InputError: If ``num_parts`` does not divide ``dim``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_parts: Annotated[int, Field(ge=1)] = 2,
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        if dim % num_parts:
            raise InputError(f"num_parts {num_parts} does not divide dim {dim}; choose a divisor")
        self.num_parts = num_parts
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        codes = torch.empty(num_parts, codebook_size, dim // num_parts)
        self.codebooks = nn.Parameter(codes.uniform_(-1 / codebook_size, 1 / codebook_size))

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """One level per part, each with a codebook shared by all positions."""
        return (QuantizerLevel(self.codebook_size),) * self.num_parts

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Search each part's codebook; see :class:`~spectok.Quantizer`."""
        parts = rearrange(z, "b n (p d) -> p (b n) d", p=self.num_parts)
        nearest = nearest_codes(parts, self.codebooks)
        indices = rearrange(nearest, "p (b n) -> b n p", b=len(z))
        codes = self.lookup(indices)
        losses = codebook_losses(
            z, codes, codebook_weight=self.codebook_weight, commitment_weight=self.commitment_weight
        )
        return QuantizerOutput(straight_through(z, codes), indices, losses, self.usage(indices))

    def lookup(self, indices: Int[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """Return the selected codes of all parts, joined."""
        first = self.codebook_size * torch.arange(self.num_parts, device=indices.device)
        codes = nn.functional.embedding(indices + first, self.codebooks.flatten(0, 1))
        return codes.flatten(2)  # (B, N, P, D / P) -> (B, N, D)

    @torch.no_grad()
    def usage(self, indices: Int[Tensor, "b n p"]) -> dict[str, Tensor]:
        """Return ``codebook_usage``: the fraction of all codes that this batch chose."""
        first = self.codebook_size * torch.arange(self.num_parts, device=indices.device)
        chosen = torch.zeros(self.num_parts * self.codebook_size, device=indices.device)
        chosen.scatter_(0, (indices + first).flatten(), 1)  # bincount would wait for a GPU
        return {"codebook_usage": chosen.mean()}
