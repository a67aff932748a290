"""What the adapted quantizers share: exact vectors, levels, and the library itself."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import PluginError
from spectok.quantizers import (
    CodeCounts,
    Quantizer,
    QuantizerLevel,
    QuantizerOutput,
    StepCounter,
    straight_through,
)

LIBRARY = "vector_quantize_pytorch"


def library() -> Any:
    """Import the library.

    Raises:
        PluginError: If it is not installed; names the extra that installs it.
    """
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise PluginError(
            "this quantizer needs the library vector-quantize-pytorch; "
            "pip install 'spectok[vqtorch]'"
        ) from error


class AdaptedQuantizer(Quantizer):
    """L levels of K codes each, whose codes of length d add up and are mapped to length D.

        z (B, N, D)
          | to_code       the library's map to d dimensions
        u (B, N, d)
          | the library's choice, level by level
        indices (B, N, L)
          | codes         one code per level, added up
        (B, N, d)
          | from_code     the library's map back
        z_q (B, N, D)

    The library returns ``x + (codes - x).detach()``, which rounds, so training would decode
    slightly different vectors from those of ``lookup``. Here both run the same operations on the
    same codes, and are equal bit for bit.

    Args:
        dim: Length D of each vector.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes K per level.
        num_levels: Levels L.
    """

    decodes_first_levels = True

    def __init__(self, *, dim: int, num_tokens: int, codebook_size: int, num_levels: int):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        self.num_levels = num_levels
        self.step_counter = StepCounter(self)
        self.code_counts = CodeCounts(self, (num_levels, codebook_size))

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """L equal levels with a codebook each, shared by all positions."""
        return (QuantizerLevel(self.codebook_size),) * self.num_levels

    @abstractmethod
    def codes(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the sum of the codes of the first l levels, before :meth:`from_code`."""

    def from_code(self, codes: Float[Tensor, "b n d"]) -> Float[Tensor, "b n D"]:
        """Map codes to vectors; the codes themselves unless a subclass says otherwise."""
        return codes

    def lookup(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the vectors that indices of the first l levels stand for."""
        return self.from_code(self.codes(indices))

    def output(
        self,
        soft: Float[Tensor, "b n d"],
        indices: Int[Tensor, "b n l"],
        losses: dict[str, Tensor],
    ) -> QuantizerOutput:
        """Assemble the result of :meth:`quantize`, and count the chosen codes.

        Args:
            soft: What receives the gradient of the codes.
            indices: The chosen codes.
            losses: Weighted terms.
        """
        if self.training:
            first = torch.arange(self.num_levels, device=indices.device) * self.codebook_size
            self.code_counts.count(indices + first)
        z_q = self.from_code(straight_through(soft, self.codes(indices)))
        return QuantizerOutput(z_q, indices, losses, self.code_counts.usage())

    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Update the running frequencies; there are no codes to edit."""
        if self.training:
            self.code_counts.update()
            self.step_counter.advance()
            self.code_counts.forget()

    def skip_step(self) -> None:
        """Forget the micro-batches since the last step; see :class:`~spectok.Quantizer`."""
        self.code_counts.forget()
