"""Lookup-free quantisation: the sign of every dimension is one bit of the index."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import InputError
from spectok.quantizers import QuantizerOutput
from spectok_vqtorch.adapter import AdaptedQuantizer, library
from spectok_vqtorch.entropy import entropy_of_mean, entropy_per_vector


class SignQuantizer(AdaptedQuantizer):
    """The common part: L levels of d signs, each level half as large as the one before.

    The entropy terms make each vector sure of its code and all codes equally used:

        entropy = entropy_weight (mean_i H(q(c|u_i)) - diversity H(mean_i q(c|u_i)))

    with q(c|u) the softmax over all 2^d codes of ``2 inverse_temperature u.c``.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per level: a power of two, 2^d.
        num_levels: Levels L.
        scale: Magnitude of each dimension of a code of the first level.
        entropy_weight: Weight of the entropy terms, summed over levels; 0 leaves them out.
        diversity: Weight of the second entropy relative to the first.
        inverse_temperature: How sharply q tells codes apart.
        commitment_weight: Weight of ``|u - sg[c]|^2``, summed over levels.

    Raises:
        InputError: If ``codebook_size`` is not a power of two.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_levels: int,
        scale: float,
        entropy_weight: float,
        diversity: float,
        inverse_temperature: float,
        commitment_weight: float,
    ):
        check_power_of_two(codebook_size)
        super().__init__(
            dim=dim, num_tokens=num_tokens, codebook_size=codebook_size, num_levels=num_levels
        )
        num_bits = codebook_size.bit_length() - 1
        same = dim == num_bits
        self.project_in = nn.Identity() if same else nn.Linear(dim, num_bits)
        self.project_out = nn.Identity() if same else nn.Linear(num_bits, dim)
        self.signs: Any = nn.ModuleList(
            library().LFQ(dim=num_bits, codebook_size=codebook_size, codebook_scale=scale / 2**i)
            for i in range(num_levels)
        )
        self.entropy_weight, self.diversity = entropy_weight, diversity
        self.inverse_temperature = inverse_temperature
        self.commitment_weight = commitment_weight

    def to_code(self, z: Float[Tensor, "b n D"]) -> Float[Tensor, "b n d"]:
        """Map linearly to one dimension per bit."""
        return self.project_in(z)

    def from_code(self, codes: Float[Tensor, "b n d"]) -> Float[Tensor, "b n D"]:
        """Map linearly to D dimensions."""
        return self.project_out(codes)

    def codes(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the sum of the first l levels' corners."""
        levels = zip(indices.unbind(-1), self.signs)
        return torch.stack([corners(sign, index) for index, sign in levels]).sum(0)

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Take signs level by level; see :class:`~spectok.Quantizer`."""
        u = residual = self.to_code(z)
        indices, entropies, errors = [], [], []
        for sign in self.signs:
            index = ((residual > 0) * sign.mask).sum(-1)
            code = corners(sign, index)
            if self.training and self.entropy_weight:
                entropies.append(self.entropy(residual, sign.codebook_scale))
            errors.append((residual - code).square().mean())
            residual = residual - code
            indices.append(index)
        losses = {"commitment": self.commitment_weight * torch.stack(errors).sum()}
        if entropies:
            losses["entropy"] = self.entropy_weight * torch.stack(entropies).sum()
        return self.output(u, torch.stack(indices, dim=-1), losses)

    def entropy(self, u: Float[Tensor, "b n d"], scale: float) -> Float[Tensor, ""]:
        """Return how unsure vectors are of their code, less how evenly codes are used."""
        logits = 4 * self.inverse_temperature * scale * u.flatten(0, 1)  # two codes, ±scale
        return entropy_per_vector(logits) - self.diversity * entropy_of_mean(logits)


class LookupFreeQuantizer(SignQuantizer):
    """LFQ: Lookup-Free Quantization (Yu et al., "Language Model Beats Diffusion", ICLR 2024).

    A linear map takes a vector to d dimensions; the code is the corner of the cube [-1, 1]^d that
    lies nearest, and its signs are the d bits of the index. See :class:`SignQuantizer` for the
    losses.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: A power of two, 2^d.
        entropy_weight: Weight of the entropy terms; 0 leaves them out.
        diversity: Weight of the entropy of the mean relative to the mean entropy.
        inverse_temperature: How sharply vectors tell codes apart.
        commitment_weight: Weight of ``|u - sg[c]|^2``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
        diversity: Annotated[float, Field(ge=0)] = 1.0,
        inverse_temperature: Annotated[float, Field(gt=0)] = 100.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_levels=1,
            scale=1.0,
            entropy_weight=entropy_weight,
            diversity=diversity,
            inverse_temperature=inverse_temperature,
            commitment_weight=commitment_weight,
        )


class BinarySphericalQuantizer(SignQuantizer):
    """BSQ: Binary Spherical Quantization (Zhao, Xiong, Krähenbühl, ICLR 2025).

    LFQ on the unit sphere: vectors and the corners of the cube are scaled to length one, which
    bounds the quantisation error. See :class:`SignQuantizer` for the losses.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: A power of two, 2^d.
        entropy_weight: Weight of the entropy terms; 0 leaves them out.
        diversity: Weight of the entropy of the mean relative to the mean entropy.
        inverse_temperature: How sharply vectors tell codes apart.
        commitment_weight: Weight of ``|u - sg[c]|^2``; 0 in the paper.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
        diversity: Annotated[float, Field(ge=0)] = 1.0,
        inverse_temperature: Annotated[float, Field(gt=0)] = 100.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.0,
    ):
        check_power_of_two(codebook_size)
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_levels=1,
            scale=math.log2(codebook_size) ** -0.5,
            entropy_weight=entropy_weight,
            diversity=diversity,
            inverse_temperature=inverse_temperature,
            commitment_weight=commitment_weight,
        )

    def to_code(self, z: Float[Tensor, "b n D"]) -> Float[Tensor, "b n d"]:
        """Map linearly to one dimension per bit, then scale to length one."""
        return F.normalize(super().to_code(z), dim=-1)


class ResidualLookupFreeQuantizer(SignQuantizer):
    """Residual LFQ: each level takes the signs of what the levels before it left, at half the size.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per level: a power of two, 2^d.
        num_levels: Levels L; an image takes ``N L d`` bits.
        entropy_weight: Weight of the entropy terms; 0 leaves them out.
        diversity: Weight of the entropy of the mean relative to the mean entropy.
        inverse_temperature: How sharply vectors tell codes apart.
        commitment_weight: Weight of ``|u - sg[c]|^2``, summed over levels.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_levels: Annotated[int, Field(ge=1, le=1024)] = 2,
        entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
        diversity: Annotated[float, Field(ge=0)] = 1.0,
        inverse_temperature: Annotated[float, Field(gt=0)] = 100.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_levels=num_levels,
            scale=1.0,
            entropy_weight=entropy_weight,
            diversity=diversity,
            inverse_temperature=inverse_temperature,
            commitment_weight=commitment_weight,
        )


def corners(sign: Any, indices: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """Return the corners of the cube that indices stand for, computed from their bits.

    The library keeps a table of them in a buffer that is not saved, and that loading a model in
    another precision would round.
    """
    bits = (indices.unsqueeze(-1) & sign.mask) != 0
    return sign.bits_to_codes(bits.float())


def check_power_of_two(codebook_size: int) -> None:
    """Check that indices are made of whole bits.

    Raises:
        InputError: With the next power of two.
    """
    if codebook_size < 2 or codebook_size & (codebook_size - 1):
        raise InputError(
            f"codebook_size {codebook_size} is not a power of two above 1: each bit is a sign; use "
            f"e.g. {max(2, 1 << codebook_size.bit_length())}"
        )
