"""TokenSpec: the written layout of an image's tokens.

Priors, the token cache, the sampler and the evaluator read this value and nothing else of a
tokenizer. As JSON it is stored with every cache and every trained prior.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from spectok.device import constant
from spectok.errors import SHOWN, TokenError, one_line, shown
from spectok.remembered import remembered

CodebookKind = Literal["shared", "position", "path"]
Order = Literal["level", "position"]
Prefix = Literal["none", "tokens", "levels"]

MAX_LEVELS, MAX_TOKENS, MAX_CODES = 1 << 10, 1 << 20, 1 << 62
"""Bounds of a layout: tokens per image, and codes in all codebooks, whose numbers are int64."""


@dataclass(frozen=True)
class Level:
    """One level of tokens: a list ``(T,)`` or a grid ``(h, w)``.

    Args:
        shape: The level's shape; a grid is read in raster order.
        vocab_size: Number of values an index of this level can take.
        codebook: How the codebook of a place is chosen. ``"shared"``: one for all places.
            ``"position"``: by place; each of ``num_codebooks`` codebooks serves an equal run of
            consecutive places. ``"path"``: by the indices of the levels above at the same place, as
            in a tree of codebooks.
        num_codebooks: Number of codebooks of a ``"position"`` level; 1 otherwise.
    """

    shape: tuple[int, ...]
    vocab_size: int
    codebook: CodebookKind = "shared"
    num_codebooks: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _as_shape(self.shape))
        for name in ("vocab_size", "num_codebooks"):
            value = _as_integer(getattr(self, name))
            if value is None or not 1 <= value <= MAX_CODES:
                raise TokenError(
                    f"{name} {shown(getattr(self, name))} must be an integer from 1 to 2**62"
                )
            object.__setattr__(self, name, value)
        if self.codebook not in ("shared", "position", "path"):
            raise TokenError(
                f"codebook {shown(self.codebook)} must be 'shared', 'position' or 'path'"
            )
        if self.codebook != "position" and self.num_codebooks != 1:
            raise TokenError(f"num_codebooks {self.num_codebooks} needs codebook='position'")
        if self.num_tokens % self.num_codebooks:
            raise TokenError(
                f"{self.num_tokens} tokens cannot be shared out among "
                f"{self.num_codebooks} codebooks; choose a divisor"
            )

    @property
    def num_tokens(self) -> int:
        """Number of tokens in this level."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TokenSpec:
    """The levels of an image's tokens and how they flatten into one sequence of length T.

    Args:
        levels: From coarse to fine.
        order: ``"level"``: all of level 0, then all of level 1, …; ``"position"``: all levels of
            place 0, then all levels of place 1, … (levels of one shape only).
        prefix: Whether the start of a sequence decodes on its own: ``"none"``, after any number of
            ``"tokens"`` (of several levels: of whole places, with ``order="position"``), or after
            any number of whole ``"levels"`` (with ``order="level"``).
    """

    levels: tuple[Level, ...]
    order: Order = "level"
    prefix: Prefix = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not all(isinstance(level, Level) for level in self.levels):
            raise TokenError(f"levels {shown(self.levels)} must each be a Level")
        shapes = {level.shape for level in self.levels}
        if not self.levels:
            raise TokenError("a TokenSpec needs at least one level")
        if self.order not in ("level", "position") or self.prefix not in (
            "none",
            "tokens",
            "levels",
        ):
            raise TokenError(
                f"order {shown(self.order)} or prefix {shown(self.prefix)} is not known"
            )
        if self.num_levels > MAX_LEVELS or self.num_tokens > MAX_TOKENS:
            raise TokenError(
                f"{self.num_tokens:,} tokens per image in {self.num_levels:,} levels are over "
                f"{MAX_TOKENS:,} in {MAX_LEVELS:,}; choose a coarser layout"
            )
        if sum(self._level_code_counts) > MAX_CODES:
            raise TokenError(
                "the codebooks of all levels have over 2**62 codes together; choose smaller "
                "vocabularies, or fewer levels of codebook='path'"
            )
        if self.levels[0].codebook == "path":
            raise TokenError("level 0 has no level above it: its codebook cannot be 'path'")
        if self.order == "position" and len(shapes) > 1:
            raise TokenError(f"levels of order='position' need equal shapes: {shapes}")
        for above, level in itertools.pairwise(self.levels):
            if level.codebook == "path" and level.shape != above.shape:
                raise TokenError(
                    f"a 'path' level and the one above need equal shapes: {level.shape} is not "
                    f"{above.shape}"
                )
        if self.prefix == "levels" and self.order != "level":
            raise TokenError("prefix='levels' needs order='level'")
        if self.prefix == "tokens" and self.order == "level" and self.num_levels > 1:
            raise TokenError("prefix='tokens' of several levels needs order='position'")

    # -- sizes ---------------------------------------------------------------------------------

    @property
    def num_tokens(self) -> int:
        """Length T of the flattened sequence."""
        return sum(level.num_tokens for level in self.levels)

    @property
    def bits_per_image(self) -> float:
        """Bits of T independent uniform indices: the sum of log2(vocab_size)."""
        return sum(level.num_tokens * math.log2(level.vocab_size) for level in self.levels)

    @property
    def max_vocab_size(self) -> int:
        """Largest vocabulary of any level: how wide a prior's output must be."""
        return max(level.vocab_size for level in self.levels)

    @remembered
    def level_of_place(self) -> tuple[int, ...]:
        """Level of each of the T places."""
        return tuple(level for level, _ in self._places)

    @remembered
    def position_of_place(self) -> tuple[int, ...]:
        """Raster position inside its level of each of the T places."""
        return tuple(position for _, position in self._places)

    @remembered
    def vocab_sizes(self) -> tuple[int, ...]:
        """Vocabulary size at each of the T places."""
        return tuple(self.levels[level].vocab_size for level in self.level_of_place)

    @property
    def decodable_prefixes(self) -> tuple[int, ...]:
        """Lengths k whose first k tokens decode, in ascending order; the last is always T."""
        if self.prefix == "tokens":
            return tuple(range(0, self.num_tokens + 1, self.num_levels))
        if self.prefix == "levels":
            ends = [sum(v.num_tokens for v in self.levels[: i + 1]) for i in range(self.num_levels)]
            return tuple(ends)
        return (self.num_tokens,)

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.levels)

    @remembered
    def _places(self) -> list[tuple[int, int]]:
        if self.order == "level":
            return [(i, p) for i, level in enumerate(self.levels) for p in range(level.num_tokens)]
        return [(i, p) for p in range(self.levels[0].num_tokens) for i in range(self.num_levels)]

    # -- layout --------------------------------------------------------------------------------

    def flatten(self, levels: list[Int[Tensor, "b ..."]]) -> Int[Tensor, "b t"]:
        """Flatten one tensor ``(B, *shape)`` per level into sequences ``(B, T)``.

        Raises:
            TokenError: If the number of levels or a shape differs from the spec.
        """
        if len(levels) != self.num_levels:
            raise TokenError(f"got {len(levels)} levels; this TokenSpec has {self.num_levels}")
        for i, (indices, level) in enumerate(zip(levels, self.levels)):
            if tuple(indices.shape[1:]) != level.shape:
                raise TokenError(
                    f"level {i}: shape {tuple(indices.shape[1:])} is not {level.shape}"
                )
        flat = [indices.flatten(1) for indices in levels]
        if self.order == "position":
            return torch.stack(flat, dim=2).flatten(1)  # (B, N, L) -> (B, T)
        return torch.cat(flat, dim=1)

    def unflatten(self, indices: Int[Tensor, "b t"]) -> list[Int[Tensor, "b ..."]]:
        """Split sequences ``(B, T)`` into one tensor ``(B, *shape)`` per level."""
        self._check_shape(indices)
        batch = indices.shape[0]
        if self.order == "position":
            flat = indices.view(batch, -1, self.num_levels).unbind(dim=2)
        else:
            flat = indices.split([level.num_tokens for level in self.levels], dim=1)
        return [part.reshape(batch, *level.shape) for part, level in zip(flat, self.levels)]

    def validate(self, indices: Int[Tensor, "b t"]) -> None:
        """Check type, length and range.

        The range is not checked where values are not known: while a graph is traced.

        Raises:
            TokenError: Names the first offending place and its range.
        """
        self._check_shape(indices)
        if torch.compiler.is_compiling():
            return
        limits = constant(self.vocab_sizes, indices.device)
        bad = (indices < 0) | (indices >= limits)
        if bad.any():
            row, place = (int(v) for v in bad.nonzero()[0])
            raise TokenError(
                f"index {int(indices[row, place])} of image {row} at place {place} (level "
                f"{self.level_of_place[place]}, position {self.position_of_place[place]}) is "
                f"outside 0..{self.vocab_sizes[place] - 1}"
            )

    def _check_shape(self, indices: Tensor) -> None:
        if not isinstance(indices, Tensor):
            raise TokenError(f"indices are a {type(indices).__name__}, not a tensor of int64")
        if indices.dtype != torch.int64:
            raise TokenError(f"indices have dtype {indices.dtype}; int64 is required: use .long()")
        if indices.ndim != 2 or indices.shape[1] != self.num_tokens:
            raise TokenError(
                f"indices of shape {tuple(indices.shape)} are not (B, {self.num_tokens})"
            )

    # -- codes as one global vocabulary ----------------------------------------------------------

    @property
    def num_codes(self) -> int:
        """Number of distinct codes over all codebooks: the size of a prior's embedding table."""
        return sum(self._level_code_counts)

    def code_ids(self, indices: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """Number the code that each index selects, over all codebooks of all levels.

        If codebooks belong to positions or to paths, one index selects different codes at different
        places. This numbering tells them apart, so an embedding table of ``num_codes`` rows suits
        every tokenizer.

        Args:
            indices: The first k tokens of each sequence, 0 <= k <= T.
        """
        base, length = self._code_bases, indices.shape[1]
        offsets = constant(base, indices.device)[:length]
        path = self._paths(indices) if any(v.codebook == "path" for v in self.levels) else indices
        return path + offsets

    @remembered
    def _level_code_counts(self) -> tuple[int, ...]:
        counts, leaves = [], 1
        for level in self.levels:
            if level.codebook == "path":
                leaves *= level.vocab_size
                counts.append(leaves)
            else:
                leaves = level.vocab_size
                counts.append(level.vocab_size * level.num_codebooks)
        return tuple(counts)

    @remembered
    def _code_bases(self) -> tuple[int, ...]:
        bases = []
        for level_index, position in self._places:
            level = self.levels[level_index]
            run = level.num_tokens // level.num_codebooks
            start = sum(self._level_code_counts[:level_index])
            owner = position // run if level.codebook == "position" else 0
            bases.append(start + owner * level.vocab_size)
        return tuple(bases)

    def _paths(self, indices: Tensor) -> Tensor:
        """Replace each index of a ``path`` level by the number of its node in that level."""
        missing = self.num_tokens - indices.shape[1]
        paths: list[Tensor] = []
        for level, index in zip(self.levels, self.unflatten(F.pad(indices, (0, missing)))):
            if level.codebook == "path":
                index = paths[-1] * level.vocab_size + index
            paths.append(index)
        return self.flatten(paths)[:, : indices.shape[1]]

    # -- JSON ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenSpec:
        """Rebuild from :meth:`to_dict`.

        Raises:
            TokenError: If a field is missing, unknown or of the wrong type.
        """
        try:
            levels = tuple(
                Level(**{**level, "shape": _as_shape(level["shape"])}) for level in data["levels"]
            )
            return cls(**{**data, "levels": levels})
        except (KeyError, TypeError) as error:
            raise TokenError(f"not a TokenSpec: {one_line(str(error))[:SHOWN]}") from error


def _as_integer(value: Any) -> int | None:
    """Return an integer, NumPy's too; None for a truth value or anything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    return operator.index(value)


def _as_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of a level.

    Raises:
        TokenError: If it is not one or two positive integers.
    """
    sizes = [_as_integer(size) for size in shape] if isinstance(shape, Sequence) else []
    found = tuple(size for size in sizes if size is not None and 1 <= size <= MAX_TOKENS)
    if len(found) != len(sizes) or len(found) not in (1, 2):
        raise TokenError(
            f"level shape {shown(shape)} must be (T,) or (h, w) of positive sizes, at most "
            f"{MAX_TOKENS:,}"
        )
    return found
