"""GPT-2 over the places of a ``TokenSpec``: the common part of ``gpt`` and ``cat``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, GPT2Config, GPT2Model
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from spectok.device import constant, send
from spectok.errors import ConfigError
from spectok_generation.conditions import Condition, TextFeatures
from spectok_generation.priors import decoding, transformer
from spectok_generation.priors.base import AutoregressivePrior
from spectok_generation.priors.codebooks import CodebookHead, at_least_float32, parent_places
from spectok_generation.priors.decoding import Decode, DecodingCache, compiled_decode
from spectok_generation.priors.layout import GPT2, Layout, Shape
from spectok_generation.priors.levels import LevelPlan
from spectok_generation.priors.orders import Annealing, draw_orders, in_order
from spectok_generation.priors.positions import INIT_STD
from spectok_generation.priors.transformer import Transformer

# Of attention under a name of its own transformers makes no masks. To find out whether it needs
# any, it would look at values, and wait for a GPU twice in each step; we know which are needed.
ATTENTION = "spectok_sdpa"
AttentionInterface.register(ATTENTION, sdpa_attention_forward)


@dataclass
class DecodingState:
    """A batch of sequences being sampled.

    Args:
        cache: Keys and values, allocated once for all T places and for the whole context.
        start: First input of each sequence, which predicts place 0.
        num_fed: Number of inputs in the cache; input i predicts place i.
        level: Hidden vectors of the level whose places are being drawn, if levels are predicted at
            once; the last of them is of place ``num_fed - 1``.
    """

    cache: DecodingCache
    start: Float[Tensor, "b d"]
    num_fed: int = 0
    level: Float[Tensor, "b n d"] | None = None


class GPT2Prior(AutoregressivePrior):
    """GPT-2 blocks over the places of a ``TokenSpec``.

        condition            indices (B,T)
          | start              | token_spec.code_ids: which code of which codebook
        start (B,1,D)        codes (B,T-1,D)
          └── concatenate ─────┘
        inputs (B,T,D)       input i predicts place i: + place embedding
          |                                           + code at the level above, if it selects
          |                                             the codebook of place i
        backbone             causal; each block also attends to the context, if there is one
          |
        head                 each codebook has its own weights; K logits per place
        logits (B,T,K)

    A subclass defines what a condition becomes: :meth:`start_inputs`, and :meth:`context` or
    :meth:`prefix`.

    With random orders (Yu et al. 2024, RAR), each training image is predicted in an order of its
    own, with a probability that falls to 0 in the course of the run; see :func:`draw_orders` for
    what is permuted. An input is then told two places: that of the token it holds, by an embedding
    that only such priors have, and that of the token it is to predict, which the paper calls
    target-aware positions and every prior here has. Likelihoods and samples are always in the order
    of the ``TokenSpec``.

    Levels predicted at once (:class:`LevelPlan`) have other inputs, and see each other within a
    level; all places of a level are then independent of each other, given the levels above.

    Args:
        token_spec: See :class:`Prior`.
        shape: Size of the transformer.
        dropout: On embeddings, attention and residual branches.
        layout: Variant of the blocks; by default GPT-2's own, without a context.
        annealing: When training uses random orders; None: never.
        by_level: Whether levels below the first are predicted at once. For GPT-2's own blocks.
        **conditions: Further arguments of :class:`Prior`.

    Raises:
        ConfigError: If there are random orders and relative positions, or the tokens have no levels
            that could be predicted at once.
    """

    shard_units = ("GPT2Block", "Block")

    def __init__(
        self,
        token_spec: dict[str, Any],
        shape: Shape,
        dropout: float,
        layout: Layout = GPT2,
        annealing: Annealing | None = None,
        by_level: bool = False,
        **conditions: Any,
    ):
        super().__init__(token_spec, **conditions)
        spec = self.token_spec
        if by_level and annealing is not None:
            raise ConfigError(
                "prior.predict: level has an order of its own; set prior.order to raster"
            )
        self.plan = LevelPlan(spec) if by_level else None
        if layout.is_gpt2(shape):
            self.backbone: Any = self._gpt2(shape, dropout, layout)
        else:
            self.backbone = Transformer(spec, shape, layout, dropout)
        self.head = CodebookHead(spec, shape.width, tied=layout.tied_embeddings)
        if annealing is not None and layout.positions != "absolute":
            raise ConfigError(
                "prior.order: random needs prior.positions=absolute, because a relative bias "
                "belongs to tokens in raster order"
            )
        self.annealing, self.progress = annealing, 0.0
        self.token_places: nn.Embedding | None = None
        if annealing is not None:
            self.token_places = nn.Embedding(spec.num_tokens, shape.width)
            nn.init.normal_(self.token_places.weight, std=INIT_STD)
        self._parents = parent_places(spec)
        self._decode: Decode = self._module.decode

    def _gpt2(self, shape: Shape, dropout: float, layout: Layout) -> GPT2Model:
        """Return GPT-2; all tokens of a text before the sequence share a place after the last."""
        spec = self.token_spec
        config = GPT2Config(
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_embd=shape.width,
            n_positions=spec.num_tokens + layout.prefix,
            vocab_size=spec.num_codes,
            resid_pdrop=dropout,
            attn_pdrop=dropout,
            embd_pdrop=dropout,
            bos_token_id=None,
            eos_token_id=None,
            activation_function="gelu_pytorch_tanh",  # GPT-2's, in one kernel instead of eight
            add_cross_attention=layout.cross_attention,
        )
        config._attn_implementation = ATTENTION
        return GPT2Model(config)

    @abstractmethod
    def start_inputs(self, condition: Condition) -> Float[Tensor, "b d"]:
        """Return the first input of each sequence."""

    def context(self, condition: Condition) -> TextFeatures | None:
        """Return what the blocks attend to beside the sequence, as vectors of length D."""
        return None

    def prefix(self, condition: Condition) -> TextFeatures | None:
        """Return what comes before the sequence, as vectors of length D."""
        return None

    def logits(self, indices: Int[Tensor, "b t"], condition: Condition) -> Float[Tensor, "b t k"]:
        """See :meth:`AutoregressivePrior.logits`."""
        start, given = (
            self.start_inputs(condition),
            (self.context(condition), self.prefix(condition)),
        )
        if self.plan is None:
            hidden = self._hidden(self._inputs(indices[:, :-1], start, first=0), *given)
        else:
            inputs = self._level_inputs(indices, start, 0, indices.shape[1])
            hidden = self._hidden(inputs, *given, mask=self.plan.mask(inputs.device))
        return self.head(hidden, self.backbone.wte.weight)

    def begin_step(self, step: int, num_steps: int) -> None:
        """See :meth:`Prior.begin_step`; without it, training stays at the start of a run."""
        self.progress = step / num_steps

    def training_logits(
        self, indices: Int[Tensor, "b t"], condition: Condition
    ) -> Float[Tensor, "b t k"]:
        """See :meth:`AutoregressivePrior.training_logits`."""
        share = 0.0 if self.annealing is None else self.annealing.share(self.progress)
        if share == 0:
            return self.logits(indices, condition)
        order = draw_orders(self.token_spec, len(indices), share)
        return self.logits_in_order(indices, condition, send(order, indices.device))

    def logits_in_order(
        self, indices: Int[Tensor, "b t"], condition: Condition, order: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t k"]:
        """Return the logits of each place given the places before it in an order of its image.

        Args:
            indices: Valid tokens, in the order of the spec.
            condition: A checked condition; see :meth:`Prior.check_condition`.
            order: Which place is the i-th to be predicted; see :func:`draw_orders`.

        Returns:
            As of :meth:`logits`, in the order of the spec.
        """
        codes = self.token_spec.code_ids(indices)
        inputs = in_order(self._embed(codes, 0), order[:, :-1])
        inputs = torch.cat([self.start_inputs(condition)[:, None], inputs], dim=1)
        if self._has_parents:
            inputs = inputs + in_order(self._parent_codes(codes[:, :-1], 0), order)
        hidden = self._hidden(inputs, self.context(condition), self.prefix(condition), order)
        hidden = in_order(hidden, order.argsort(dim=1))  # each at its place again
        return self.head(hidden, self.backbone.wte.weight)

    def start(self, condition: Condition) -> DecodingState:
        """See :meth:`AutoregressivePrior.start`."""
        start, length = self.start_inputs(condition), self.token_spec.num_tokens
        given = self.context(condition), self.prefix(condition)
        cache = self._module.new_cache(self.backbone, len(start), length, *given)
        return DecodingState(cache, start)

    def next_logits(
        self, state: DecodingState, indices: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b v"]:
        """See :meth:`AutoregressivePrior.next_logits`."""
        first, end = state.num_fed, indices.shape[1] + 1
        if self.plan is not None and self.token_spec.level_of_place[end - 1] > 0:
            hidden = self._of_level(state, indices)
            return at_least_float32(self.head.at(hidden, end - 1, self.backbone.wte.weight))
        inputs = self._inputs(indices, state.start, first)
        places = torch.arange(first, end, device=inputs.device)
        mask = None
        if len(places) > 1:  # several at once: each sees the places up to itself
            mask = torch.arange(end, device=inputs.device) <= places[:, None]
        hidden = self._decode(self.backbone, state.cache, inputs, places, end, mask)[:, -1]
        state.num_fed = end
        return at_least_float32(self.head.at(hidden, end - 1, self.backbone.wte.weight))

    def _of_level(self, state: DecodingState, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Return the hidden vector of place k, which is on a level that is predicted at once."""
        assert self.plan is not None
        place = indices.shape[1]
        _, end = self.plan.bounds[self.token_spec.level_of_place[place]]
        if state.num_fed < end:
            first, device = state.num_fed, indices.device
            inputs = self._level_inputs(indices, state.start, first, end)
            seen = self.plan.mask(device)[first:end, :end]
            places = torch.arange(first, end, device=device)
            state.level = self._decode(self.backbone, state.cache, inputs, places, end, seen)
            state.num_fed = end
        assert state.level is not None
        return state.level[:, place - end]

    def keep_rows(self, state: DecodingState, count: int) -> None:
        """See :meth:`AutoregressivePrior.keep_rows`."""
        state.start = state.start[:count]
        state.level = None if state.level is None else state.level[:count]
        state.cache.keep_rows(count)

    def compile_step(self) -> None:
        """See :meth:`Prior.compile_step`; each batch size is compiled separately."""
        self._decode = compiled_decode(self.token_spec.num_tokens, self._module.decode)

    @property
    def _module(self) -> Any:
        """Module whose ``new_cache`` and ``decode`` belong to the backbone."""
        return transformer if isinstance(self.backbone, Transformer) else decoding

    def _hidden(
        self,
        inputs: Float[Tensor, "b t d"],
        context: TextFeatures | None,
        prefix: TextFeatures | None,
        places: Int[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "t t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Return what the inputs become.

        Args:
            inputs: One vector per place.
            context: What the blocks attend to beside the sequence.
            prefix: What comes before the sequence.
            places: Those that the inputs predict, if not in order.
            mask: Which inputs each sees, if not those up to itself; not with a prefix.
        """
        if isinstance(self.backbone, Transformer):
            return self.backbone(inputs, context, prefix, places)
        length, arguments = inputs.shape[1], _as_arguments(context)
        if places is None:
            places = torch.arange(length, device=inputs.device)[None]
        arguments["position_ids"] = places
        if mask is not None:
            arguments["attention_mask"] = mask[None, None]
        if prefix is not None:
            before = prefix.mask.shape[1]
            arguments["position_ids"] = F.pad(places, (before, 0), value=length)
            shown = F.pad(prefix.mask, (0, length), value=True)[:, None, None, :]
            order = torch.arange(before + length, device=inputs.device)
            arguments["attention_mask"] = shown & (order <= order[:, None])
            inputs = torch.cat([prefix.features, inputs], dim=1)
        hidden = self.backbone(inputs_embeds=inputs, use_cache=False, **arguments)
        return hidden.last_hidden_state[:, -length:]

    def _inputs(
        self, indices: Int[Tensor, "b k"], start: Float[Tensor, "b d"], first: int
    ) -> Float[Tensor, "b n d"]:
        """Return the inputs that predict places first..k from the first k tokens."""
        codes = self.token_spec.code_ids(indices)
        inputs = self._embed(codes, max(first - 1, 0))
        if first == 0:
            inputs = torch.cat([start[:, None], inputs], dim=1)
        if self._has_parents:
            inputs = inputs + self._parent_codes(codes, first)
        return inputs

    def _level_inputs(
        self, indices: Int[Tensor, "b k"], start: Float[Tensor, "b d"], first: int, end: int
    ) -> Float[Tensor, "b n d"]:
        """Return the inputs of places first..end-1, where levels are predicted at once."""
        assert self.plan is not None
        codes = self.token_spec.code_ids(indices)
        sources = self.plan.sources[max(first, 1) : end]
        inputs = self.backbone.wte(codes[:, constant(sources, codes.device)])
        return torch.cat([start[:, None], inputs], dim=1) if first == 0 else inputs

    @property
    def _has_parents(self) -> bool:
        return any(parent is not None for parent in self._parents)

    def _embed(self, codes: Int[Tensor, "b k"], first: int) -> Float[Tensor, "b n d"]:
        """Return the vectors of the tokens of places first..k-1, with their places if needed."""
        vectors = self.backbone.wte(codes[:, first:])
        if self.token_places is None:
            return vectors
        return vectors + self.token_places.weight[first : codes.shape[1]]

    def _parent_codes(self, codes: Int[Tensor, "b k"], first: int) -> Float[Tensor, "b n d"]:
        parents = self._parents[first : codes.shape[1] + 1]
        columns = tuple(0 if parent is None else parent + 1 for parent in parents)
        place = constant(columns, codes.device)
        chosen = F.pad(codes, (1, 0))[:, place]  # column 0 is a placeholder
        return self.backbone.wte(chosen) * (place > 0)[:, None]


def _as_arguments(context: TextFeatures | None) -> dict[str, Tensor]:
    """Return the context under the argument names of GPT-2."""
    if context is None:
        return {}
    return {
        "encoder_hidden_states": context.features,
        "encoder_attention_mask": context.mask[:, None, None, :],
    }
