"""Product quantisation: a vector as groups of numbers, each with a quantizer of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import InputError, build_quantizer
from spectok.quantizers import Quantizer, QuantizerLevel, QuantizerOption, QuantizerOutput


class ProductQuantizer(Quantizer):
    """PQ (Jégou, Douze, Schmid, IEEE TPAMI 33(1), 2011, section II.B) around any quantizer.

        z (B, N, D)
          | split         into G groups of D/G consecutive numbers
        (B, N, D/G) each
          | quantizers    one for each group, with codes and statistics of its own
        z_q               side by side again

    G codebooks of K codes stand for K^G vectors, at the memory and the search of G K. A squared
    distance is the sum of the groups' distances, so where each group finds its nearest code, all
    together find the nearest of the K^G.

    The levels are those of the first group, then those of the second, and so on. Each loss is the
    mean of the groups' losses of its name. Each metric is given as their mean, and for every group
    under ``group{g}_`` and its name, g counted from 0.

    Args:
        dim: Length D of each vector; divisible by ``num_groups``.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes per codebook of each group.
        num_groups: Groups G; an image has G times as many tokens as with one.
        quantizer: Name or mapping of the quantizer of a group; any registered one.

    Raises:
        InputError: If ``num_groups`` does not divide ``dim``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_groups: Annotated[int, Field(ge=1, le=1024)] = 2,
        quantizer: QuantizerOption = "ema",
    ):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        if dim % num_groups:
            raise InputError(
                f"num_groups {num_groups} does not divide vectors of length {dim}; choose a divisor"
            )
        self.groups = nn.ModuleList(
            build_quantizer(
                quantizer, dim=dim // num_groups, num_tokens=num_tokens, codebook_size=codebook_size
            )
            for _ in range(num_groups)
        )

    @property
    def members(self) -> list[Quantizer]:
        """The quantizers of the groups, in order."""
        return [group for group in self.groups if isinstance(group, Quantizer)]

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """The levels of all groups, group by group."""
        return tuple(level for group in self.members for level in group.levels)

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The tables of all groups, whose vectors are D/G long."""
        return tuple(table for group in self.members for table in group.code_tables)

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Quantise each group; see :class:`~spectok.Quantizer`."""
        parts = z.chunk(len(self.groups), dim=-1)
        outputs = [group(part) for group, part in zip(self.members, parts)]
        return QuantizerOutput(
            torch.cat([output.z_q for output in outputs], dim=-1),
            torch.cat([output.indices for output in outputs], dim=-1),
            _means([output.losses for output in outputs]),
            _means([output.metrics for output in outputs])
            | {
                f"group{number}_{name}": value
                for number, output in enumerate(outputs)
                for name, value in output.metrics.items()
            },
        )

    def lookup(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return the vectors of all groups, side by side."""
        depths = [len(group.levels) for group in self.members]
        parts = indices.split(depths, dim=-1)
        found = [group.lookup(part) for group, part in zip(self.members, parts)]
        return torch.cat(found, dim=-1)

    def before_step(self) -> None:
        """Let all groups read their gradients."""
        for group in self.members:
            group.before_step()

    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Let all groups edit their codes."""
        optimizers = list(optimizers)
        for group in self.members:
            group.after_step(optimizers)

    def skip_step(self) -> None:
        """Let all groups discard a step that is not taken."""
        for group in self.members:
            group.skip_step()


def _means(groups: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each value over the groups; all have the same names."""
    return {name: torch.stack([group[name] for group in groups]).mean() for name in groups[0]}
