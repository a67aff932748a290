"""The two stacks of a gated PixelCNN, over whole grids and place by place.

Kernels only have weights for the places they may see, so no mask is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

GATED_STD = 0.34
"""Standard deviation of the output of :func:`gate` for an input of standard deviation 1."""

Maps = list[Tensor]
"""Conditions of a grid: maps that broadcast to ``(B, D, H, W)`` and are summed."""


def gate(x: Tensor) -> Tensor:
    """Return ``tanh(a) * sigmoid(b)`` of the two halves of the channels (Eq. 2)."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks (van den Oord et al. 2016, Fig. 2; condition: Eq. 4).

        v (B,D,H,W)                      h (B,D,H,W)            maps
          | vertical, + condition          |                      | condition
        pre_v (B,2D,H,W) ── down ──> + <── horizontal, + condition┘
          | gate                         pre_h (B,2D,H,W)
        v                                  | gate, dropout, out, + h unless first
                                         h

    At a place, v sees the rows above; h also sees the places to the left.

    Args:
        width: Channels D.
        kernel: Odd side of the neighbourhood whose first half a place sees.
        is_first: Whether the input is the tokens themselves. Then v excludes the row of the place,
            h excludes the place itself, and h has no residual connection.
        dropout: On the gated features of the horizontal stack.
    """

    def __init__(self, width: int, kernel: int, *, is_first: bool, dropout: float):
        super().__init__()
        self.is_first, self.reach = is_first, kernel // 2
        seen = self.reach if is_first else self.reach + 1
        self.vertical = nn.Conv2d(width, 2 * width, (seen, kernel))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, seen), bias=False)  # self.down has one
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.condition = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        # v has no residual: with the default initialisation it would shrink to a third in each
        # layer, and nothing would be learned from rows more than about four above.
        fan_in = width * seen * kernel
        nn.init.normal_(self.vertical.weight, std=1 / (GATED_STD * math.sqrt(fan_in)))

    def forward(
        self, v: Float[Tensor, "b d h w"], h: Float[Tensor, "b d h w"], maps: Maps
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h w"]]:
        """Return the next v and h."""
        end = -1 if self.is_first else 0  # drops the last row or column, which shifts the others
        v = F.pad(v, (self.reach, self.reach, self.reach, end))
        v, to_h = self.step_down(v, maps)
        pre_h = self.horizontal(F.pad(h, (self.reach, end))) + to_h
        new = self.out(self.dropout(gate(pre_h)))
        return v, new if self.is_first else h + new

    def step_down(
        self, padded: Float[Tensor, "b d h_in w_in"], maps: Maps
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d2 h w"]]:
        """Return the next v, and what v and the maps add to the horizontal stack.

        Args:
            padded: v, padded as the kernel needs it.
            maps: Conditions of the rows.
        """
        # One by one: a map that is constant over places or images is cheap.
        condition = self.condition(maps[0])
        for more in maps[1:]:
            condition = condition + self.condition(more)
        for_v, for_h = condition.chunk(2, dim=1)
        pre_v = self.vertical(padded) + for_v
        return gate(pre_v), self.down(pre_v) + for_h


class GatedStack(nn.Module):
    """The layers of a gated PixelCNN: features of each place from the places before it.

    Args:
        width: Channels D.
        kernels: Odd kernel size of each layer.
        dropout: See :class:`GatedLayer`.
    """

    def __init__(self, width: int, kernels: Sequence[int], dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            GatedLayer(width, kernel, is_first=i == 0, dropout=dropout)
            for i, kernel in enumerate(kernels)
        )

    def forward(self, grid: Float[Tensor, "b d h w"], maps: Maps) -> Float[Tensor, "b d h w"]:
        """Return features of every place, each from the places before it in raster order.

        Args:
            grid: Vectors of the tokens.
            maps: Conditions of the grid.
        """
        v = h = grid
        for layer in self.layers:
            v, h = layer(v, h, maps)
        return h


class StackCache:
    """State of a :class:`GatedStack` on grids that are filled place by place.

    At the start of a row the vertical stack runs for all its places at once; each place then takes
    two small matrix products per layer. Only rows within reach of a kernel are kept.

    Args:
        stack: The stack.
        maps: Conditions of the grids.
        batch_size: Number of grids B.
        columns: Columns W of a grid.
    """

    def __init__(self, stack: GatedStack, maps: Maps, batch_size: int, columns: int):
        self.layers = [cast(GatedLayer, layer) for layer in stack.layers]
        self.maps, self.columns = maps, columns
        new, width = maps[0].new_zeros, maps[0].shape[1]
        self.above = [  # inputs of the vertical convolutions: (B, D, rows, W + borders)
            new(batch_size, width, layer.vertical.kernel_size[0], columns + 2 * layer.reach)
            for layer in self.layers
        ]
        self.left = [  # inputs of the horizontal convolutions, border included
            new(batch_size, layer.reach + columns, width) for layer in self.layers
        ]
        self.to_h = [new(batch_size, columns, 2 * width) for _ in self.layers]
        self.weights = [
            rearrange(layer.horizontal.weight, "o d 1 k -> (k d) o").contiguous()
            for layer in self.layers
        ]

    def features(self, place: int) -> Float[Tensor, "b d"]:
        """Return the features of a place; those of all earlier places must come first."""
        row, column = divmod(place, self.columns)
        if column == 0:
            self._begin_row(row)
        h = self.left[0][:, 0]
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights)):
            if not layer.is_first:
                self.left[i][:, layer.reach + column] = h
            seen = self.left[i][:, column : column + layer.horizontal.kernel_size[1]]
            pre_h = torch.addmm(self.to_h[i][:, column], seen.flatten(1), weight)
            new = F.linear(gate(pre_h), layer.out.weight.flatten(1), layer.out.bias)
            h = new if layer.is_first else h + new
        return h

    def put(self, place: int, vectors: Float[Tensor, "b d"]) -> None:
        """Store the token of a place."""
        self.left[0][:, self.layers[0].reach + place % self.columns] = vectors

    def keep_rows(self, count: int) -> None:
        """Drop all but the first grids of the batch."""
        for tensors in (self.maps, self.above, self.left, self.to_h):
            tensors[:] = [tensor[:count] for tensor in tensors]

    def _begin_row(self, row: int) -> None:
        maps = [m[:, :, row : row + 1] if m.shape[2] > 1 else m for m in self.maps]
        new = rearrange(self.left[0][:, self.layers[0].reach :], "b w d -> b d w")
        for layer, above, to_h in zip(self.layers, self.above, self.to_h):
            if row > 0 or not layer.is_first:  # the first layer must not see tokens of this row
                above[:, :, :-1] = above[:, :, 1:].clone()
                above[:, :, -1, layer.reach : -layer.reach] = new
            v, given = layer.step_down(above, maps)
            to_h[:] = rearrange(given, "b d 1 w -> b w d")
            new = v[:, :, 0]
