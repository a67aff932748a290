"""A causal transformer with the parts of CAT's released code, each of which can be had alone.

With none of them it computes what GPT-2 computes, which a test shows; those priors use the blocks
of transformers, as all did before this module.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spectok import TokenSpec
from spectok_generation.conditions import TextFeatures
from spectok_generation.priors.decoding import DecodingCache, KeysAndValues, causal_mask
from spectok_generation.priors.layout import Grid, Layout, Shape
from spectok_generation.priors.positions import INIT_STD, GridPlaces, RelativeBias


class View(NamedTuple):
    """What some inputs see of all there are.

    Args:
        mask: Which keys each may read; 1 instead of B if the same for all sequences. None: all;
            not with a cache or relative positions.
        places: Places that the last m of them predict; those before are of a text.
        leading: How many keys, of the null entry and of a text, come before that of input 0.
        slots: Where to put their keys and values in a cache.
    """

    mask: Bool[Tensor, "_ 1 n k"] | None
    places: Int[Tensor, "m"]
    leading: int = 0
    slots: Int[Tensor, "n"] | None = None


class Attention(nn.Module):
    """Attention with keys and values per head, or one vector for all heads.

    With ``"multi_query"`` (Shazeer 2019) all heads read the same keys and values; as in CAT's
    released code, one projection gives a vector that is key and value at once.

    Args:
        shape: Size of the transformer.
        layout: Its variant.
        has_null: Whether there is a learned null entry, at which a query can look instead of at
            any place.
    """

    def __init__(self, shape: Shape, layout: Layout, has_null: bool = False):
        super().__init__()
        self.num_heads, self.head_width = shape.num_heads, shape.head
        self.shares = layout.attention == "multi_query"
        inner, biased = self.num_heads * self.head_width, layout.block == "gpt2"
        read = self.head_width if self.shares else 2 * inner
        self.query = nn.Linear(shape.width, inner, bias=biased)
        self.key_value = nn.Linear(shape.width, read, bias=biased)
        self.output = nn.Linear(inner, shape.width, bias=biased)
        self.null_entry = nn.Parameter(torch.empty(read)) if has_null else None
        self.dropout = 0.0

    def read(self, x: Float[Tensor, "b n d"]) -> KeysAndValues:
        """Return keys and values, each ``(B, heads or 1, N, head width)``."""
        return self._split(self.key_value(x))

    def read_null(self, batch_size: int) -> KeysAndValues | None:
        """Return key and value of the null entry, if there is one."""
        if self.null_entry is None:
            return None
        return self._split(self.null_entry.expand(batch_size, 1, -1))

    def forward(
        self, x: Float[Tensor, "b n d"], found: KeysAndValues, mask: Tensor | None
    ) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            x: What asks.
            found: Keys and values; see :meth:`read`.
            mask: Which keys each query sees, or what is added to the logits.
        """
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.num_heads)
        keys, values = (part.expand(-1, self.num_heads, -1, -1) for part in found)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        dropped = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, keys, values, mask, dropout_p=dropped)
        return self.output(rearrange(seen, "b h n d -> b n (h d)"))

    def _split(self, x: Tensor) -> KeysAndValues:
        if self.shares:
            return x[:, None], x[:, None]
        keys, values = rearrange(x, "b n (p h d) -> p b h n d", p=2, h=self.num_heads)
        return keys, values


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them; released: a layer norm there too.

    Args:
        width: Length D of the vectors.
        released: See :class:`Block`.
    """

    def __init__(self, width: int, released: bool):
        super().__init__()
        self.inner = nn.Linear(width, 4 * width, bias=not released)
        self.norm = nn.LayerNorm(4 * width, bias=False) if released else nn.Identity()
        self.output = nn.Linear(4 * width, width, bias=not released)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Map each vector."""
        return self.output(self.norm(F.gelu(self.inner(x), approximate="tanh")))


class Block(nn.Module):
    """Self-attention, attention to the context, feed-forward; each added to its normed input.

    ``block="released"``, CAT's released code: linear layers and norms have no bias, the
    feed-forward part has a layer norm inside, self-attention has a learned null entry, and dropout
    is on what attention reads and asks with. ``block="gpt2"``: dropout is on the weights of
    attention and on what each part adds.

    Args:
        shape: Size of the transformer.
        layout: Its variant.
        grid: Where the places lie, with relative positions.
        dropout: Rate.
    """

    def __init__(self, shape: Shape, layout: Layout, grid: Grid | None, dropout: float):
        super().__init__()
        released = layout.block == "released"

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(shape.width, bias=not released)

        self.norm, self.attention = norm(), Attention(shape, layout, has_null=released)
        self.bias = None if grid is None else RelativeBias(grid, shape.num_heads)
        if layout.cross_attention:
            self.cross_norm, self.cross_attention = norm(), Attention(shape, layout)
        self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(shape.width, released)
        self.drop_input = nn.Dropout(dropout if released else 0.0)
        self.drop_output = nn.Dropout(0.0 if released else dropout)
        for part in self.modules():
            if isinstance(part, Attention) and not released:
                part.dropout = dropout
        _initialise(self, shape.num_layers)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        view: View,
        context: tuple[KeysAndValues, Tensor] | None,
        past: KeysAndValues | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Map the vectors of some places.

        Args:
            x: Their vectors.
            view: What they see.
            context: Keys and values of the context, and a mask of those in use.
            past: Keys and values of all inputs, where those of x are put. None: x is all there is.
        """
        asks = self.drop_input(self.norm(x))
        found = self._found(asks, view, past)
        x = x + self.drop_output(self.attention(asks, found, self._biased(view)))
        if context is not None:
            asks = self.drop_input(self.cross_norm(x))
            x = x + self.drop_output(self.cross_attention(asks, *context))
        return x + self.drop_output(self.feed_forward(self.feed_forward_norm(x)))

    def read_context(self, context: TextFeatures) -> tuple[KeysAndValues, Tensor]:
        """Return the keys and values of a context, and which are in use."""
        found = self.cross_attention.read(self.drop_input(context.features))
        return found, context.mask[:, None, None]

    def _found(self, asks: Tensor, view: View, past: KeysAndValues | None) -> KeysAndValues:
        """Return the keys and values that self-attention reads."""
        keys, values = self.attention.read(asks)
        if past is None:
            null = self.attention.read_null(len(asks))
            if null is None:
                return keys, values
            return torch.cat([null[0], keys], dim=2), torch.cat([null[1], values], dim=2)
        assert view.slots is not None
        assert view.mask is not None
        past[0].index_copy_(2, view.slots, keys)
        if past[1] is not past[0]:
            past[1].index_copy_(2, view.slots, values)
        end = view.mask.shape[3]
        return past[0][:, :, :end], past[1][:, :, :end]

    def _biased(self, view: View) -> Tensor | None:
        """Return the mask, or with relative positions what is added to the logits."""
        if self.bias is None or len(view.places) == 0:
            return view.mask
        assert view.mask is not None
        queries, keys = view.mask.shape[2:]
        bias = self.bias(view.places, keys - view.leading)
        bias = F.pad(bias, (view.leading, 0, queries - len(view.places), 0))
        return bias.masked_fill(~view.mask, -torch.inf)


class Transformer(nn.Module):
    """Blocks over a sequence that a text may precede.

        prefix (B,P,D)       inputs (B,T,D)
          |                    | + place, or row + column
          └── concatenate ─────┘
        blocks                 each input sees the null entry, the text, and the inputs up to itself
          |
        norm
        hidden (B,T,D)         of the inputs alone

    A text has no places here: the encoder has told its tokens' order already.

    Args:
        spec: Layout of the tokens.
        shape: Size.
        layout: Variant.
        dropout: Rate.

    Raises:
        ConfigError: If relative positions are wanted and the tokens are on no grid.
    """

    def __init__(self, spec: TokenSpec, shape: Shape, layout: Layout, dropout: float):
        super().__init__()
        grid = Grid.of(spec) if layout.positions == "relative_2d" else None
        self.wte = nn.Embedding(spec.num_codes, shape.width)
        self.places: nn.Module = nn.Embedding(spec.num_tokens, shape.width)
        if grid is not None:
            self.places = GridPlaces(grid, shape.width)
        self.drop = nn.Dropout(dropout if layout.block == "gpt2" else 0.0)
        blocks = [Block(shape, layout, grid, dropout) for _ in range(shape.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(shape.width, bias=layout.block == "gpt2")
        for part in (self.wte, self.places):
            _initialise(part, shape.num_layers)

    def forward(
        self,
        inputs: Float[Tensor, "b t d"],
        context: TextFeatures | None = None,
        prefix: TextFeatures | None = None,
        targets: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Return the hidden vectors of all inputs, each given those up to itself.

        Args:
            inputs: One vector per place.
            context: What the blocks attend to beside the sequence.
            prefix: What comes before the sequence.
            targets: Place that each input predicts; not with relative positions. None: in order.
        """
        length = inputs.shape[1]
        places = torch.arange(length, device=inputs.device)
        x = inputs + self.places(places if targets is None else targets)
        leading = self.leading(len(inputs), prefix)
        if prefix is not None:
            x = torch.cat([prefix.features, x], dim=1)
        x, slots = self.drop(x), torch.arange(x.shape[1], device=x.device)
        nulls = leading.shape[1] - (x.shape[1] - length)
        mask = causal_mask(slots + nulls, leading, leading.shape[1] + length)
        view = View(mask, places, leading.shape[1])
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block(x, view, None if context is None else block.read_context(context))
        return self.norm(x[:, -length:])

    def leading(self, batch_size: int, prefix: TextFeatures | None) -> Bool[Tensor, "b p"]:
        """Return which of the keys before those of the inputs are in use: null entry and text."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        nulls = 0 if first.attention.null_entry is None else 1
        device = self.wte.weight.device
        used = torch.ones(batch_size, nulls, dtype=torch.bool, device=device)
        return used if prefix is None else torch.cat([used, prefix.mask], dim=1)


def new_cache(
    backbone: Transformer,
    batch_size: int,
    length: int,
    context: TextFeatures | None,
    prefix: TextFeatures | None = None,
) -> DecodingCache:
    """Return the cache of new sequences; see :func:`spectok_generation.priors.decoding.new_cache`.

    With multi-query attention keys and values are one tensor, with one vector per place.
    """
    leading = backbone.leading(batch_size, prefix)
    cache = DecodingCache([], [], leading=leading)
    for block in backbone.blocks:
        assert isinstance(block, Block)
        attention = block.attention
        heads = 1 if attention.shares else attention.num_heads
        shape = (batch_size, heads, leading.shape[1] + length, attention.head_width)
        keys = attention.query.weight.new_zeros(shape)
        values = keys if attention.shares else keys.clone()
        null = attention.read_null(batch_size)
        if null is not None:
            keys[:, :, :1], values[:, :, :1] = null
        cache.past.append((keys, values))
        if context is not None:
            found, cache.context_mask = block.read_context(context)
            cache.context.append(found)
    if prefix is not None:
        x, first = prefix.features, leading.shape[1] - prefix.mask.shape[1]
        slots = torch.arange(first, leading.shape[1], device=x.device)
        mask = causal_mask(slots, leading, leading.shape[1])
        _run(backbone, cache, x, View(mask, slots[:0], leading.shape[1], slots))
    return cache


def decode(
    backbone: Transformer,
    cache: DecodingCache,
    inputs: Float[Tensor, "b n d"],
    places: Int[Tensor, "n"],
    end: int,
    mask: Bool[Tensor, "n end"] | None,
) -> Float[Tensor, "b n d"]:
    """Feed inputs; see :func:`spectok_generation.priors.decoding.decode`."""
    leading = cache.leading
    assert leading is not None
    seen = cache.with_leading(mask, len(places), end)
    if seen is None:
        seen = torch.ones(len(places), end, dtype=torch.bool, device=inputs.device)
    seen = seen if seen.ndim == 4 else seen[None, None]
    view = View(seen, places, leading.shape[1], places + leading.shape[1])
    x = _run(backbone, cache, inputs + backbone.places(places), view)
    return backbone.norm(x)


def _run(backbone: Transformer, cache: DecodingCache, x: Tensor, view: View) -> Tensor:
    for number, block in enumerate(backbone.blocks):
        context = None
        if cache.context and cache.context_mask is not None:
            context = cache.context[number], cache.context_mask
        x = block(x, view, context, cache.past[number])
    return x


def _initialise(module: nn.Module, num_layers: int) -> None:
    """Draw weights as GPT-2 does: what is added to the hidden vectors is smaller in deep models."""
    for name, parameter in module.named_parameters():
        if name.endswith("output.weight"):
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * num_layers))
        elif parameter.ndim > 1 or name.endswith("null_entry"):
            nn.init.normal_(parameter, std=INIT_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
