"""The gated PixelCNN over the tokens of any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok import TokenSpec
from spectok.device import constant
from spectok.errors import ConfigError
from spectok_generation.conditions import Condition
from spectok_generation.priors.base import AutoregressivePrior
from spectok_generation.priors.codebooks import CodebookHead, at_least_float32
from spectok_generation.priors.gated import GATED_STD, GatedStack, Maps, StackCache
from spectok_generation.priors.grids import grid_size, nearest_cells, plan_passes
from spectok_generation.priors.layout import Count, Rate

Kernel = Annotated[int, Field(ge=3)]


@dataclass
class PixelCNNState:
    """A batch of sequences being sampled.

    Args:
        class_vectors: Class embedding of each sequence.
        vectors: Embedded tokens of each level; zero where not drawn yet.
        cache: Cache of the current pass.
        features: Features of the current position.
        summaries: Summaries of the finished passes.
        num_fed: Number of tokens that the state includes.
    """

    class_vectors: Tensor
    vectors: list[Tensor]
    cache: StackCache
    features: Tensor
    summaries: list[Tensor] = field(default_factory=list)
    num_fed: int = 0


class PixelCNN(AutoregressivePrior):
    """Gated PixelCNN (van den Oord et al. 2016) over a ``TokenSpec``.

        indices (B,T)
          | token_spec.code_ids     which code of which codebook
        vectors (B,N,D) of each level
          | one grid per pass
        grid (B,D,h,w)            maps: class + position + summaries of earlier passes
          | stack <─────────────────┘
        features (B,N,D)          of each position, from the positions before it
          | to_head             + vectors of earlier levels at the same position
        hidden (B,N,head_width) of each level
          | head                  each codebook has its own weights; K logits per place
        logits (B,T,K)

    A pass runs a stack over a grid. With ``order="level"`` there is one pass per level, each
    conditioned on all earlier levels. With ``order="position"`` there is a single pass, whose
    positions hold one token of every level.

    Levels of the same shape have a token each at a position; these are predicted in turn, each from
    the ones before: p(k1) p(k2|k1) p(k3|k1,k2). If codebooks are chosen by path, this is an exact
    softmax over the leaves of the tree, computed branch by branch.

    A list ``(T,)`` is folded, in order, into a grid as square as possible: in a single row, the
    number of layers would limit how far to the left a token sees.

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Number of classes; 0 for an unconditional prior.
        tokenizer: Record of the tokenizer whose tokens these are.
        num_layers: Layers of each pass.
        width: Channels D.
        first_kernel: Side of the first layer's neighbourhood; odd.
        kernel: Side of the neighbourhood of the other layers; odd.
        head_width: Channels before the output layer.
        dropout: On the gated features of the horizontal stack.
        condition_dropout: Fraction of training images whose class is hidden.

    Raises:
        ConfigError: If a kernel is even.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"class_dropout": "condition_dropout"}

    shard_units = ("GatedLayer",)

    @register_to_config
    def __init__(
        self,
        *,
        token_spec: dict[str, Any],
        num_classes: int = 0,
        tokenizer: dict[str, Any] | None = None,
        num_layers: Count = 15,
        width: Count = 128,
        first_kernel: Kernel = 7,
        kernel: Kernel = 3,
        head_width: Count = 512,
        dropout: Rate = 0.0,
        condition_dropout: Rate = 0.0,
    ):
        super().__init__(token_spec, num_classes, condition_dropout=condition_dropout)
        for name, side in (("first_kernel", first_kernel), ("kernel", kernel)):
            if side % 2 == 0:
                raise ConfigError(f"prior.{name} {side} is even and has no middle; use {side + 1}")
        spec = self.token_spec
        self.passes = plan_passes(spec)
        self.sizes = [grid_size(spec.levels[levels[0]]) for levels in self.passes]
        self.code_vectors = nn.Embedding(spec.num_codes, width)
        self.class_vectors = nn.Embedding(num_classes + 1, width)  # the last one: no class
        self.positions = nn.ParameterList([torch.zeros(1, width, *size) for size in self.sizes])
        kernels = [first_kernel, *[kernel] * (num_layers - 1)]
        self.stacks = nn.ModuleList(GatedStack(width, kernels, dropout) for _ in self.passes)
        self.summarize = nn.ModuleList(Summary(width) for _ in self.passes[1:])
        self.to_head = nn.ModuleList(
            PositionHead(spec, level, width, head_width) for level in range(spec.num_levels)
        )
        self.head = CodebookHead(spec, head_width)
        self._places = [
            tuple(place for place, owner in enumerate(spec.level_of_place) if owner == level)
            for level in range(spec.num_levels)
        ]
        for table in (self.code_vectors, self.class_vectors):
            nn.init.normal_(table.weight, std=GATED_STD)
        by_level = [place for places in self._places for place in places]
        self._in_sequence = tuple(sorted(range(spec.num_tokens), key=by_level.__getitem__))

    def logits(self, indices: Int[Tensor, "b t"], condition: Condition) -> Float[Tensor, "b t k"]:
        """See :meth:`AutoregressivePrior.logits`."""
        classes = self.class_vectors(condition)
        codes = self.code_vectors(self.token_spec.code_ids(indices))
        vectors = [codes[:, constant(places, codes.device)] for places in self._places]
        summaries, hidden = [], []
        for number, levels in enumerate(self.passes):
            grid = self._grid(number, vectors)
            maps = self._maps(number, classes, summaries)
            features = rearrange(self.stacks[number](grid, maps), "b d h w -> b (h w) d")
            features = features[:, : vectors[levels[0]].shape[1]]
            hidden += [self.to_head[level](features, vectors) for level in levels]
            if number < len(self.summarize):
                summaries.append(self.summarize[number](grid))
        return self.head(torch.cat(hidden, dim=1)[:, constant(self._in_sequence, codes.device)])

    def start(self, condition: Condition) -> PixelCNNState:
        """See :meth:`AutoregressivePrior.start`."""
        classes = self.class_vectors(condition)
        batch, width = classes.shape
        vectors = [classes.new_zeros(batch, len(places), width) for places in self._places]
        cache = self._new_cache(0, classes, [])
        return PixelCNNState(classes, vectors, cache, cache.features(0))

    def next_logits(
        self, state: PixelCNNState, indices: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b v"]:
        """See :meth:`AutoregressivePrior.next_logits`."""
        spec, place = self.token_spec, indices.shape[1]
        for codes in spec.code_ids(indices)[:, state.num_fed :].unbind(1):
            self._feed(state, self.code_vectors(codes))
        level, position = spec.level_of_place[place], spec.position_of_place[place]
        here = [v[:, position : position + 1] for v in state.vectors[: level + 1]]
        hidden = self.to_head[level](state.features.unsqueeze(1), here)
        return at_least_float32(self.head.at(hidden.squeeze(1), place))

    def keep_rows(self, state: PixelCNNState, count: int) -> None:
        """See :meth:`AutoregressivePrior.keep_rows`."""
        state.class_vectors, state.features = state.class_vectors[:count], state.features[:count]
        state.vectors = [vectors[:count] for vectors in state.vectors]
        state.summaries = [summary[:count] for summary in state.summaries]
        state.cache.keep_rows(count)

    def _feed(self, state: PixelCNNState, vectors: Float[Tensor, "b d"]) -> None:
        """Add the token of the current place; compute what the next place needs."""
        spec, place = self.token_spec, state.num_fed
        level, position = spec.level_of_place[place], spec.position_of_place[place]
        state.vectors[level][:, position] = vectors
        state.num_fed += 1
        number = len(state.summaries)
        levels = self.passes[number]
        if level != levels[-1]:
            return  # the next token has the same position
        if position + 1 < spec.levels[level].num_tokens:
            whole = torch.stack([state.vectors[i][:, position] for i in levels])
            state.cache.put(position, whole.sum(0))
            state.features = state.cache.features(position + 1)
        elif number < len(self.summarize):
            state.summaries.append(self.summarize[number](self._grid(number, state.vectors)))
            state.cache = self._new_cache(number + 1, state.class_vectors, state.summaries)
            state.features = state.cache.features(0)

    def _new_cache(self, number: int, classes: Tensor, summaries: list[Tensor]) -> StackCache:
        stack: Any = self.stacks[number]
        maps = self._maps(number, classes, summaries)
        return StackCache(stack, maps, len(classes), self.sizes[number][1])

    def _grid(self, number: int, vectors: list[Tensor]) -> Float[Tensor, "b d h w"]:
        """Lay out the tokens of a pass; cells that a folded list does not fill are zero."""
        whole = torch.stack([vectors[level] for level in self.passes[number]]).sum(0)
        height, width = self.sizes[number]
        whole = F.pad(whole, (0, 0, 0, height * width - whole.shape[1]))
        return rearrange(whole, "b (h w) d -> b d h w", h=height)

    def _maps(self, number: int, classes: Tensor, summaries: list[Tensor]) -> Maps:
        """Return the conditions of a pass: class, position and earlier passes."""
        maps = [classes[:, :, None, None], self.positions[number]]
        levels = self.token_spec.levels
        for i, summary in enumerate(summaries[:number]):
            cells = constant(tuple(nearest_cells(levels[i], levels[number])), summary.device)
            maps.append(summary.flatten(2)[:, :, cells].unflatten(2, self.sizes[number]))
        return maps


class Summary(nn.Module):
    """Summary of a finished pass for later ones: at each position, local and global context.

    Args:
        width: Channels D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.overall = nn.Linear(width, width)

    def forward(self, grid: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Summarise a grid of vectors."""
        local = grid + self.body(grid)
        return local + self.overall(local.mean((2, 3)))[:, :, None, None]


class PositionHead(nn.Module):
    """Features of positions -> hidden vectors of the tokens of one level.

    Args:
        spec: Layout of the tokens.
        level: The level.
        width: Channels D of the features and the code vectors.
        head_width: Length of the hidden vectors.
    """

    def __init__(self, spec: TokenSpec, level: int, width: int, head_width: int):
        super().__init__()
        shape = spec.levels[level].shape
        self.above = [i for i in range(level) if spec.levels[i].shape == shape]
        self.from_features = nn.Linear(width, head_width)
        self.from_codes = nn.Linear(width, head_width, bias=False) if self.above else None

    def forward(
        self, features: Float[Tensor, "b n d"], vectors: list[Tensor]
    ) -> Float[Tensor, "b n f"]:
        """Combine features with the codes of earlier levels at the same positions.

        Args:
            features: Features of n positions.
            vectors: Code vectors of each earlier level, ``(B, n, D)`` if it has these positions.
        """
        hidden = self.from_features(features)
        if self.from_codes is not None:
            chosen = torch.stack([vectors[i] for i in self.above]).sum(0)
            hidden = hidden + self.from_codes(chosen)
        return hidden.relu()
