"""Hierarchical quantisation: one code for a block, then one for each part of the residual."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from spectok import InputError, build_quantizer
from spectok.device import send
from spectok.quantizers import (
    Quantizer,
    QuantizerLevel,
    QuantizerOption,
    QuantizerOutput,
    draw_per_sample,
)


class HierarchicalQuantizer(Quantizer):
    """HQ (You, Kim, Kim, Lee, Han, "Locally Hierarchical Auto-Regressive Modeling", NeurIPS 2022).

        z (B, N, D)
          | top           one code of length D per vector
        z - top           the residual
          | cut           into P parts of length D / P
          | bottom        one code per part, from one codebook for all parts
        z_q               top + bottom

    In HQ-VAE a vector is a block of latent pixels and its parts are the pixels: the top code gives
    the coarse content, and the P bottom codes below it add detail. Either quantizer may be any
    registered one.

    Args:
        dim: Length D of each vector; divisible by ``num_parts``.
        num_tokens: Number N of vectors per image.
        codebook_size: Codes of the top quantizer, and of the bottom one.
        num_parts: Parts P of a vector: bottom codes below each top code.
        top: Name or mapping of the quantizer of whole vectors.
        bottom: Name or mapping of the quantizer of parts.
        bottom_dropout: Share of training images decoded from their top codes alone, which teaches
            the decoder to do without the bottom ones.

    Raises:
        InputError: If ``num_parts`` does not divide ``dim``, or codebooks of the bottom quantizer
            do not fit the parts.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        codebook_size: int,
        num_parts: Annotated[int, Field(ge=1)] = 4,
        top: QuantizerOption = "ema",
        bottom: QuantizerOption = "ema",
        bottom_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        if dim % num_parts:
            raise InputError(
                f"num_parts {num_parts} does not divide vectors of length {dim}; choose a divisor"
            )
        self.num_parts, self.bottom_dropout = num_parts, bottom_dropout
        self.top = build_quantizer(top, dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        self.bottom = build_quantizer(
            bottom,
            dim=dim // num_parts,
            num_tokens=num_tokens * num_parts,
            codebook_size=codebook_size,
        )
        for level in self.bottom.levels:
            self.level_of_part(level)  # refuses codebooks that do not fit the parts
        self.decodes_first_levels = len(self.top.levels) == 1 or self.top.decodes_first_levels

    @property
    def levels(self) -> tuple[QuantizerLevel, ...]:
        """The top quantizer's levels, then the bottom one's, once for each part."""
        part = tuple(self.level_of_part(level) for level in self.bottom.levels)
        return self.top.levels + part * self.num_parts

    @property
    def code_tables(self) -> tuple[Float[Tensor, "_ _ _"] | None, ...]:
        """The tables of the top quantizer, then for each part those that serve it."""
        return self.top.code_tables + tuple(
            self.table_of_part(table, level, part)
            for part in range(self.num_parts)
            for table, level in zip(self.bottom.code_tables, self.bottom.levels)
        )

    def level_of_part(self, level: QuantizerLevel) -> QuantizerLevel:
        """Return a level of the bottom quantizer as one part has it, with the codebooks it uses.

        Raises:
            InputError: Unless a codebook serves whole parts, or a part has whole codebooks.
        """
        if level.codebook != "position":
            return level
        run = self.bottom.num_tokens // level.num_codebooks  # places of one codebook
        if run % self.num_tokens == 0:  # whole parts
            return QuantizerLevel(level.vocab_size)
        if self.num_tokens % run:
            raise InputError(
                f"{level.num_codebooks} bottom codebooks for {run} places each do not fit "
                f"{self.num_parts} parts of {self.num_tokens} places; let num_codebooks be 1, "
                f"{self.num_parts}, or {self.num_parts} times a divisor of {self.num_tokens}"
            )
        return QuantizerLevel(level.vocab_size, "position", self.num_tokens // run)

    def table_of_part(
        self, table: Float[Tensor, "g k d"] | None, level: QuantizerLevel, part: int
    ) -> Float[Tensor, "h k d"] | None:
        """Return the codebooks of a bottom level that serve one part."""
        if table is None or level.codebook != "position":
            return table
        run = self.bottom.num_tokens // level.num_codebooks
        first = part * self.num_tokens // run
        return table[first : first + max(1, self.num_tokens // run)]

    def quantize(self, z: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Quantise whole vectors, then the parts of the residual."""
        top = self.top(z)
        bottom = self.bottom(self.cut(z - top.z_q))
        detail = self.join(bottom.z_q)
        if self.training and self.bottom_dropout:
            kept = draw_per_sample(len(z)) >= self.bottom_dropout
            detail = detail * send(kept, z.device)[:, None, None]
        indices = torch.cat([top.indices, self.join(bottom.indices)], dim=-1)
        losses = _named(top=top.losses, bottom=bottom.losses)
        metrics = _named(top=top.metrics, bottom=bottom.metrics)
        for name in top.metrics.keys() & bottom.metrics.keys():
            metrics[name] = (top.metrics[name] + bottom.metrics[name]) / 2
        return QuantizerOutput(top.z_q + detail, indices, losses, metrics)

    def lookup(self, indices: Int[Tensor, "b n l"]) -> Float[Tensor, "b n d"]:
        """Return top codes plus the bottom codes of complete parts; other parts are zero."""
        depth, per_part = len(self.top.levels), len(self.bottom.levels)
        whole = self.top.lookup(indices[..., :depth])
        given = max(0, indices.shape[-1] - depth) // per_part
        if given == 0:
            return whole
        missing = (self.num_parts - given) * per_part
        below = indices[..., depth : depth + given * per_part]
        parts = F.pad(below, (0, missing))
        detail = self.bottom.lookup(self.cut(parts))
        if missing:
            place = torch.arange(detail.shape[1], device=detail.device) // self.num_tokens
            detail = torch.where((place < given)[:, None], detail, 0)
        return whole + self.join(detail)

    def cut(self, vectors: Tensor) -> Tensor:
        """Cut vectors into parts, ``(B, N, P x)`` to ``(B, P N, x)``; part 0 of all comes first."""
        return rearrange(vectors, "b n (p x) -> b (p n) x", p=self.num_parts)

    def join(self, parts: Tensor) -> Tensor:
        """Join parts into vectors: the inverse of :meth:`cut`."""
        return rearrange(parts, "b (p n) x -> b n (p x)", p=self.num_parts)

    def before_step(self) -> None:
        """Let both quantizers read their gradients."""
        self.top.before_step()
        self.bottom.before_step()

    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Let both quantizers edit their codes."""
        optimizers = list(optimizers)
        self.top.after_step(optimizers)
        self.bottom.after_step(optimizers)

    def skip_step(self) -> None:
        """Let both quantizers discard a step that is not taken."""
        self.top.skip_step()
        self.bottom.skip_step()


def _named(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the values of both quantizers into one dict, each name with its quantizer before it."""
    return {f"{place}_{name}": v for place, values in parts.items() for name, v in values.items()}
