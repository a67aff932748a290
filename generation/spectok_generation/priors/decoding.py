"""GPT-2 one step at a time, with a cache of keys and values that is allocated once.

Blocks and weights are those of transformers; only attention is written out, so that a step reads
no more of the cache than is filled. The ``StaticCache`` of transformers attends to the whole cache
under a mask, and its ``DynamicCache`` copies the cache at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers import GPT2Model

from spectok.errors import InputError
from spectok_generation.conditions import TextFeatures

KeysAndValues = tuple[Tensor, Tensor]
Decode = Callable[..., Tensor]


@dataclass
class DecodingCache:
    """Keys and values of every block.

    Args:
        past: Those of the sequence, each ``(B, heads, T, D / heads)``, allocated for all T places.
        context: Those of the context, computed once; empty without a context.
        context_mask: Which places of the context are used.
        leading: What comes before place 0 in ``past``, if anything does, such as a text: which of
            it is used.
    """

    past: list[KeysAndValues]
    context: list[KeysAndValues]
    context_mask: Bool[Tensor, "b 1 1 l"] | None = None
    leading: Bool[Tensor, "b p"] | None = None

    @property
    def num_leading(self) -> int:
        """Entries of ``past`` before place 0."""
        return 0 if self.leading is None else self.leading.shape[1]

    def with_leading(self, mask: Tensor | None, count: int, end: int) -> Tensor | None:
        """Extend a mask over places to what comes before them; None: all.

        Args:
            mask: Which of the places each query may attend to, ``(N, end)``. None: all.
            count: Number of queries N.
            end: Number of places.
        """
        if self.leading is None or self.num_leading == 0:
            return mask
        before = self.leading[:, None, None].expand(-1, 1, count, -1)
        places = mask if mask is not None else before.new_ones(count, end)
        return torch.cat([before, places.expand(len(before), 1, count, end)], dim=3)

    def keep_rows(self, count: int) -> None:
        """Drop all but the first sequences of the batch."""
        for tensors in (self.past, self.context):
            for number, (keys, values) in enumerate(tensors):
                kept = keys[:count]
                tensors[number] = (kept, kept if values is keys else values[:count])
        if self.context_mask is not None:
            self.context_mask = self.context_mask[:count]
        if self.leading is not None:
            self.leading = self.leading[:count]


def causal_mask(
    slots: Int[Tensor, "n"], leading: Bool[Tensor, "b p"], end: int
) -> Bool[Tensor, "b 1 n end"]:
    """Return which keys each query sees: those up to its own, but no unused one that leads.

    Args:
        slots: Number of each query's own key.
        leading: Which of the first p keys are used.
        end: Number of keys.
    """
    seen = torch.arange(end, device=slots.device) <= slots[:, None]
    return seen & F.pad(leading, (0, end - leading.shape[1]), value=True)[:, None, None]


def new_cache(
    backbone: GPT2Model,
    batch_size: int,
    length: int,
    context: TextFeatures | None,
    prefix: TextFeatures | None = None,
) -> DecodingCache:
    """Return the cache of new sequences.

    Args:
        backbone: The model.
        batch_size: Number of sequences B.
        length: Places T of each.
        context: What the blocks attend to beside the sequences, as vectors of the model's width.
        prefix: What comes before the sequences, as vectors of the model's width.
    """
    heads, weight = backbone.config.n_head, backbone.wpe.weight
    num_leading = 0 if prefix is None else prefix.mask.shape[1]
    shape = (batch_size, heads, num_leading + length, weight.shape[1] // heads)
    past = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in backbone.h]
    blocks: Any = backbone.h
    if prefix is not None:
        cache = DecodingCache(past, [], leading=prefix.mask)
        slots = torch.arange(num_leading, device=weight.device)
        x = prefix.features + weight[length]
        mask = causal_mask(slots, prefix.mask, num_leading)
        _through_blocks(backbone, cache, x, slots, mask, num_leading)
        return cache
    if context is None:
        return DecodingCache(past, [])
    projected = [
        _split_heads(block.crossattention.c_attn(context.features), 2, heads) for block in blocks
    ]
    return DecodingCache(past, [(k, v) for k, v in projected], context.mask[:, None, None])


def decode(
    backbone: GPT2Model,
    cache: DecodingCache,
    inputs: Float[Tensor, "b n d"],
    places: Int[Tensor, "n"],
    end: int,
    mask: Bool[Tensor, "n end"] | None,
) -> Float[Tensor, "b n d"]:
    """Feed the inputs of consecutive places; return the hidden vectors of all of them.

    Args:
        backbone: The model, in eval mode.
        cache: Updated in place.
        inputs: One vector per place.
        places: Numbers of the places, consecutive; all earlier ones are in the cache.
        end: Number of places of the cache to attend to, at least those that are filled.
        mask: Which of these each place may attend to. None: all.
    """
    x, slots = inputs + backbone.wpe(places), places
    if cache.num_leading:
        slots = places + cache.num_leading
    seen = cache.with_leading(mask, len(places), end)
    x = _through_blocks(backbone, cache, x, slots, seen, end + cache.num_leading)
    return backbone.ln_f(x)


def compiled_decode(length: int, decode: Decode = decode) -> Decode:
    """Return a variant of :func:`decode` whose single steps run through ``torch.compile``.

    A compiled step attends to the whole cache under a mask, so that all steps have the same shape.

    Args:
        length: Places T of the cache.
        decode: The function itself, or another of the same arguments.
    """
    step = torch.compile(decode, fullgraph=True, dynamic=False)

    def run(
        backbone: Any,
        cache: DecodingCache,
        inputs: Tensor,
        places: Tensor,
        end: int,
        mask: Tensor | None,
    ) -> Tensor:
        if len(places) > 1:
            return decode(backbone, cache, inputs, places, end, mask)
        filled = torch.arange(length, device=places.device) <= places[:, None]
        try:
            return step(backbone, cache, inputs, places, length, filled)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"torch.compile does not work on this machine ({reason}); sample without it"
            ) from error

    return run


def _through_blocks(
    backbone: GPT2Model,
    cache: DecodingCache,
    x: Float[Tensor, "b n d"],
    slots: Int[Tensor, "n"],
    mask: Tensor | None,
    end: int,
) -> Float[Tensor, "b n d"]:
    """Put the keys and values of some vectors into their slots, and attend up to the end."""
    blocks: Any = backbone.h
    for number, block in enumerate(blocks):
        query, *new = _split_heads(block.attn.c_attn(block.ln_1(x)), 3, block.attn.num_heads)
        for kept, latest in zip(cache.past[number], new):
            kept.index_copy_(2, slots, latest)
        keys, values = (kept[:, :, :end] for kept in cache.past[number])
        x = x + _attend(block.attn, query, keys, values, mask)
        if cache.context:
            attention = block.crossattention
            (query,) = _split_heads(
                attention.q_attn(block.ln_cross_attn(x)), 1, attention.num_heads
            )
            x = x + _attend(attention, query, *cache.context[number], cache.context_mask)
        x = x + block.mlp(block.ln_2(x))
    return x


def _attend(
    attention: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Float[Tensor, "b n d"]:
    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return attention.c_proj(rearrange(found, "b h n d -> b n (h d)"))


def _split_heads(x: Float[Tensor, "b n d"], parts: int, heads: int) -> Tensor:
    return rearrange(x, "b n (p h d) -> p b h n d", p=parts, h=heads)
