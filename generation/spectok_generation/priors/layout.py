"""Sizes and variants of the transformers behind ``gpt`` and ``cat``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from spectok import TokenSpec
from spectok.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
AttentionKind = Literal["multi_head", "multi_query"]
PositionKind = Literal["absolute", "relative_2d"]
BlockKind = Literal["gpt2", "released"]


@dataclass(frozen=True)
class Shape:
    """Size of a transformer.

    Args:
        num_layers: Blocks.
        num_heads: Attention heads.
        width: Length D of the hidden vectors.
        head_width: Length of the vectors of one head. None: D / num_heads, which must be whole.
    """

    num_layers: int
    num_heads: int
    width: int
    head_width: int | None = None

    def __post_init__(self) -> None:
        if self.head_width is None and self.width % self.num_heads:
            raise ConfigError(
                f"prior.width {self.width} is not divisible by prior.num_heads {self.num_heads}"
            )

    @property
    def head(self) -> int:
        """Length of the vectors of one head."""
        return self.head_width or self.width // self.num_heads


@dataclass(frozen=True)
class Layout:
    """Variant of a transformer; by default GPT-2 without a text.

    Args:
        attention: ``"multi_query"``: all heads share one key/value vector per place.
        positions: ``"relative_2d"``: rows and columns, and a bias per offset on the grid.
        block: ``"released"``: the block of CAT's released code; see
            :class:`spectok_generation.priors.transformer.Block`.
        tied_embeddings: Whether output weights are the embeddings of the codes.
        cross_attention: Whether the blocks attend to a context.
        prefix: Whether vectors of a text come before the sequence.
    """

    attention: AttentionKind = "multi_head"
    positions: PositionKind = "absolute"
    block: BlockKind = "gpt2"
    tied_embeddings: bool = False
    cross_attention: bool = False
    prefix: bool = False

    def is_gpt2(self, shape: Shape) -> bool:
        """Return whether GPT-2's own blocks have this layout."""
        kinds = (self.attention, self.positions, self.block)
        usual = shape.head * shape.num_heads == shape.width
        return usual and kinds == ("multi_head", "absolute", "gpt2")


GPT2 = Layout()


@dataclass(frozen=True)
class Grid:
    """Where each place of a sequence lies on the grid that all its levels share.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        num_levels: Levels, each with a token in every cell.
        by_position: Whether all levels of a cell come before the next cell.
    """

    rows: int
    columns: int
    num_levels: int
    by_position: bool

    @classmethod
    def of(cls, spec: TokenSpec) -> Grid:
        """Return the grid of a layout of tokens.

        Raises:
            ConfigError: If a level is a list, or levels lie on different grids.
        """
        shapes = {level.shape for level in spec.levels}
        if len(shapes) > 1 or len(spec.levels[0].shape) != 2:
            listed = ", ".join(str(level.shape) for level in spec.levels)
            raise ConfigError(
                f"prior.positions: relative_2d needs tokens on one grid, but the levels of this "
                f"tokenizer have the shapes {listed}; use absolute"
            )
        rows, columns = spec.levels[0].shape
        return cls(rows, columns, spec.num_levels, spec.order == "position")

    def locate(self, places: Int[Tensor, "n"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and level of several places, each ``(N,)``."""
        cells = self.rows * self.columns
        if self.by_position:
            cell, level = places // self.num_levels, places % self.num_levels
        else:
            cell, level = places % cells, places // cells
        return cell // self.columns, cell % self.columns, level
