"""Lay the levels of a ``TokenSpec`` out on grids, for convolutional priors."""

from __future__ import annotations

import math

from spectok import Level, TokenSpec

Size = tuple[int, int]


def plan_passes(spec: TokenSpec) -> list[tuple[int, ...]]:
    """Return the levels that each pass over a grid predicts.

    With ``order="position"`` all levels of a position come before the next position, so one pass
    predicts them together. With ``order="level"`` there is one pass per level.
    """
    levels = tuple(range(spec.num_levels))
    return [levels] if spec.order == "position" else [(level,) for level in levels]


def grid_size(level: Level) -> Size:
    """Return the rows and columns of a level; a list is folded into the squarest grid that fits."""
    if len(level.shape) == 2:
        return level.shape[0], level.shape[1]
    columns = math.isqrt(level.num_tokens - 1) + 1
    return -(-level.num_tokens // columns), columns


def nearest_cells(coarse: Level, fine: Level) -> list[int]:
    """Return, for each cell of a level's grid, the cell of an earlier level's grid that covers it.

    Two grids are matched by row and column; otherwise tokens are matched by their relative position
    in the sequence.

    Args:
        coarse: The earlier level.
        fine: The later level.
    """
    (rows, columns), (height, width) = grid_size(coarse), grid_size(fine)
    if len(coarse.shape) == len(fine.shape) == 2:
        return [
            (y * rows // height) * columns + x * columns // width
            for y in range(height)
            for x in range(width)
        ]
    last = fine.num_tokens - 1  # later cells are padding
    return [
        min(cell, last) * coarse.num_tokens // fine.num_tokens for cell in range(height * width)
    ]
