"""SimVQ: all codes move together, as one linear map of fixed vectors."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok.quantizers import QuantizerOutput, codebook_losses, nearest_codes
from spectok_vqtorch.adapter import AdaptedQuantizer, library


class TransformedQuantizer(AdaptedQuantizer):
    """The common part: L levels of codes ``C W``, with C random and fixed and W learned.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per level.
        num_levels: Levels L, each with its own C and W.
        codebook_weight: Weight of ``|sg[z] - e|^2``, which moves W; summed over levels.
        commitment_weight: Weight of ``|z - sg[e]|^2``, summed over levels.
        rotate: Whether the gradient is rotated and scaled as z is onto its code.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_levels: int,
        codebook_weight: float,
        commitment_weight: float,
        rotate: bool,
    ):
        super().__init__(
            dim=dim, num_tokens=num_tokens, codebook_size=codebook_size, num_levels=num_levels
        )
        self.maps: Any = nn.ModuleList(
            library().SimVQ(dim=dim, codebook_size=codebook_size) for _ in range(num_levels)
        )
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.rotate = rotate

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The transformed codes of each level."""
        return tuple(layer.codebook[None] for layer in self.maps)

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Search level by level; see :class:`~spectok.Quantizer`."""
        residual, indices, terms, total = z, [], [], torch.zeros(z.shape, device=z.device)
        for layer in self.maps:
            table = layer.codebook  # (K, D)
            index = nearest_codes(residual.detach().flatten(0, 1)[None], table.detach()[None])
            index = index.view(z.shape[:2])
            code = F.embedding(index, table)
            terms.append(
                codebook_losses(
                    residual,
                    code,
                    codebook_weight=self.codebook_weight,
                    commitment_weight=self.commitment_weight,
                )
            )
            residual, total = residual - code.detach(), total + code.detach()
            indices.append(index)
        losses = {name: torch.stack([term[name] for term in terms]).sum() for name in terms[0]}
        return self.output(self.turned(z, total), torch.stack(indices, dim=-1), losses)

    def turned(
        self, z: Float[Tensor, "b n d"], codes: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """Return z rotated and scaled onto the codes (Fifty et al. 2024), or z itself."""
        if not self.rotate:
            return z
        from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

        return rotate_to(z, codes)

    def codes(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the sum of the first l levels' codes."""
        levels = zip(indices.unbind(-1), self.maps)
        return torch.stack([F.embedding(index, layer.codebook) for index, layer in levels]).sum(0)


class SimVQuantizer(TransformedQuantizer):
    """SimVQ (Zhu, Li, Xin, Xu, "Addressing Representation Collapse", 2024).

    The codes are a linear map of fixed random vectors. When chosen codes move the map, codes that
    nothing chooses move with it, so the whole codebook stays in use.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K.
        codebook_weight: Weight of ``|sg[z] - e|^2``.
        commitment_weight: Weight of ``|z - sg[e]|^2``.
        rotate: Whether the gradient uses the rotation trick (Fifty et al. 2024), as the library
            advises, or passes straight through, as in the paper.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        rotate: bool = True,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_levels=1,
            codebook_weight=codebook_weight,
            commitment_weight=commitment_weight,
            rotate=rotate,
        )


class ResidualSimVQuantizer(TransformedQuantizer):
    """Residual SimVQ: each level codes what the levels before it left, with its own map.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per level.
        num_levels: Levels L; an image takes ``N L log2(K)`` bits.
        codebook_weight: Weight of ``|sg[r] - e|^2``, summed over levels.
        commitment_weight: Weight of ``|r - sg[e]|^2``, summed over levels.
        rotate: Whether the gradient uses the rotation trick (Fifty et al. 2024).
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_levels: Annotated[int, Field(ge=1, le=1024)] = 2,
        codebook_weight: Annotated[float, Field(gt=0)] = 1.0,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        rotate: bool = True,
    ):
        super().__init__(
            dim=dim,
            num_tokens=num_tokens,
            codebook_size=codebook_size,
            num_levels=num_levels,
            codebook_weight=codebook_weight,
            commitment_weight=commitment_weight,
            rotate=rotate,
        )
