"""How the levels of a ``TokenSpec`` lie on grids, for priors that convolve."""

from __future__ import annotations

import math

from spectok import Level, TokenSpec

Size = tuple[int, int]


def plan_passes(spec: TokenSpec) -> list[tuple[int, ...]]:
    """Return the levels that each pass over a grid predicts.

    With ``order="position"`` all levels of a position come before the next position, so one pass
    predicts them together. With ``order="level"`` each level has a pass of its own.
    """
    levels = tuple(range(spec.num_levels))
    return [levels] if spec.order == "position" else [(level,) for level in levels]


def grid_size(level: Level) -> Size:
    """Return rows and columns of a level; a list is folded into the squarest grid that holds it."""
    if len(level.shape) == 2:
        return level.shape[0], level.shape[1]
    columns = math.isqrt(level.num_tokens - 1) + 1
    return -(-level.num_tokens // columns), columns


def nearest_cells(coarse: Level, fine: Level) -> list[int]:
    """Return, for each cell of one level's grid, the cell of an earlier level's that it lies in.

    Grids are compared by row and column, and lists, folded or not, by how far along a token is.

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
    last = fine.num_tokens - 1  # cells after it are padding
    return [
        min(cell, last) * coarse.num_tokens // fine.num_tokens for cell in range(height * width)
    ]
