"""Rows and columns instead of numbered places: embeddings, and a bias of attention per offset."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectok_generation.priors.layout import Grid

INIT_STD = 0.02
"""Standard deviation of initial weights, as in GPT-2."""


class GridPlaces(nn.Module):
    """One embedding per row, one per column, and one per level where there are several; added.

    Args:
        grid: Where the places lie.
        width: Length D of the vectors.
    """

    def __init__(self, grid: Grid, width: int):
        super().__init__()
        self.grid = grid
        self.rows = nn.Embedding(grid.rows, width)
        self.columns = nn.Embedding(grid.columns, width)
        self.levels = nn.Embedding(grid.num_levels, width) if grid.num_levels > 1 else None

    def forward(self, places: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
        """Return the vectors of several places."""
        row, column, level = self.grid.locate(places)
        found = self.rows(row) + self.columns(column)
        return found if self.levels is None else found + self.levels(level)


class RelativeBias(nn.Module):
    """A learned number per head and offset, added to the logits of self-attention.

    The offset is that from the token that is read to the place that is predicted, in rows and
    columns. Input i predicts place i and holds the token of place i - 1, so the last row and the
    last column are as near as they are on the grid, and not one further. Input 0 holds no token,
    and gets no bias; nor does a text.

    Args:
        grid: Where the places lie.
        num_heads: Attention heads.
    """

    def __init__(self, grid: Grid, num_heads: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(num_heads, 2 * grid.rows - 1, 2 * grid.columns - 1))
        nn.init.normal_(self.table, std=INIT_STD)

    def forward(self, places: Int[Tensor, "n"], end: int) -> Float[Tensor, "h n end"]:
        """Return the bias between inputs.

        Args:
            places: Places that the queries predict.
            end: Number of inputs that are keys, from input 0 on.
        """
        row, column, _ = self.grid.locate(places)
        row_read, column_read, _ = self.grid.locate(torch.arange(end - 1, device=places.device))
        down = row[:, None] - row_read + self.grid.rows - 1
        right = column[:, None] - column_read + self.grid.columns - 1
        return F.pad(self.table[:, down, right], (1, 0))
