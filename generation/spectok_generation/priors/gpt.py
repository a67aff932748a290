"""minGPT on the tokens of any tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, StaticCache

from spectok import TokenSpec
from spectok.errors import ConfigError
from spectok_generation.priors.base import AutoregressivePrior

SIZES = {  # layers, heads, width
    "gpt-nano": (3, 3, 48),
    "gpt-micro": (4, 4, 128),
    "gpt-mini": (6, 6, 192),
    "gopher-44m": (8, 16, 512),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
Size = Literal[
    "gpt-nano",
    "gpt-micro",
    "gpt-mini",
    "gopher-44m",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class GPTState:
    """A batch of sequences being sampled.

    Args:
        cache: Keys and values, allocated once for all T places.
        labels: Class of each sequence.
        num_fed: How many inputs the cache holds; input i predicts place i.
    """

    cache: StaticCache
    labels: Tensor
    num_fed: int = 0


class GPT(AutoregressivePrior):
    """GPT-2 blocks (Radford et al. 2019) in the sizes of Karpathy's minGPT, over a ``TokenSpec``.

        class (B,)            indices (B,T)
          | start               | token_spec.code_ids: which code of which codebook
        start (B,1,D)         codes (B,T-1,D)
          └── concatenate ──────┘
        inputs (B,T,D)        input i predicts place i: + place embedding
          |                                            + code chosen at the level above, if the
          |                                              codebook of place i hangs on it
        backbone              causal
          |
        head                  each codebook has its own weights; K logits per place
        logits (B,T,K)

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Number of classes; 0 for an unconditional prior.
        tokenizer: Record of the tokenizer whose tokens these are.
        size: A minGPT size, which the next three arguments override.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide the width.
        width: Length D of the hidden vectors.
        dropout: On embeddings, attention and residual branches.
        class_dropout: Share of training images whose class is hidden.
    """

    @register_to_config
    def __init__(
        self,
        *,
        token_spec: dict[str, Any],
        num_classes: int = 0,
        tokenizer: dict[str, Any] | None = None,
        size: Size = "gpt-mini",
        num_layers: Count | None = None,
        num_heads: Count | None = None,
        width: Count | None = None,
        dropout: Rate = 0.1,
        class_dropout: Rate = 0.0,
    ):
        super().__init__(token_spec, num_classes, condition_dropout=class_dropout)
        layers, heads, wide = SIZES[size]
        layers, heads, wide = num_layers or layers, num_heads or heads, width or wide
        if wide % heads:
            raise ConfigError(f"prior.width {wide} is not divisible by prior.num_heads {heads}")
        spec = self.token_spec
        config = GPT2Config(
            n_layer=layers,
            n_head=heads,
            n_embd=wide,
            n_positions=spec.num_tokens,
            vocab_size=spec.num_codes,
            resid_pdrop=dropout,
            attn_pdrop=dropout,
            embd_pdrop=dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.backbone = GPT2Model(config)
        self.start_vectors = nn.Embedding(num_classes + 1, wide)  # the last one: no class
        self.head = CodebookHead(spec, wide)
        nn.init.normal_(self.start_vectors.weight, std=config.initializer_range)
        self._parents = _parent_places(spec)

    def logits(
        self, indices: Int[Tensor, "b t"], labels: Int[Tensor, "b"]
    ) -> Float[Tensor, "b t k"]:
        """See :meth:`AutoregressivePrior.logits`."""
        inputs = self._inputs(indices[:, :-1], labels, first=0)
        return self.head(self.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state)

    def start(self, labels: Int[Tensor, "b"]) -> GPTState:
        """See :meth:`AutoregressivePrior.start`."""
        cache = StaticCache(self.backbone.config, max_cache_len=self.token_spec.num_tokens)
        return GPTState(cache, labels)

    def next_logits(self, state: GPTState, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b v"]:
        """See :meth:`AutoregressivePrior.next_logits`."""
        place = indices.shape[1]
        inputs = self._inputs(indices, state.labels, first=state.num_fed)
        hidden = self.backbone(
            inputs_embeds=inputs,
            past_key_values=state.cache,
            position_ids=torch.arange(state.num_fed, place + 1, device=inputs.device)[None],
            use_cache=True,
        ).last_hidden_state
        state.num_fed = place + 1
        return self.head.at(hidden[:, -1], place).float()

    def _inputs(
        self, indices: Int[Tensor, "b k"], labels: Int[Tensor, "b"], first: int
    ) -> Float[Tensor, "b n d"]:
        """Return the inputs that predict places first..k from the first k tokens."""
        codes = self.token_spec.code_ids(indices)
        inputs = self.backbone.wte(codes[:, max(first - 1, 0) :])
        if first == 0:
            inputs = torch.cat([self.start_vectors(labels)[:, None], inputs], dim=1)
        if any(parent is not None for parent in self._parents):
            inputs = inputs + self._parent_codes(codes, first)
        return inputs

    def _parent_codes(self, codes: Int[Tensor, "b k"], first: int) -> Float[Tensor, "b n d"]:
        parents = self._parents[first : codes.shape[1] + 1]
        columns = [0 if parent is None else parent + 1 for parent in parents]
        known = torch.tensor([c > 0 for c in columns], device=codes.device)
        chosen = F.pad(codes, (1, 0))[:, columns]  # column 0 is a placeholder
        return self.backbone.wte(chosen) * known[:, None]


class CodebookHead(nn.Module):
    """Linear output layers, one per codebook, with K logits at each place.

    A level whose codebooks belong to positions has one weight matrix per codebook: index 3 of one
    codebook has nothing to do with index 3 of the next. On 16 tokens of 64 codes each, of digits,
    that gave 3.39 held-out bits per token where one matrix for all (with a bias for each) gave 4.00
    after 900 steps. Nothing as wide as all codebooks together is ever computed.

    Args:
        spec: Layout of the tokens.
        width: Length D of the hidden vectors.
    """

    def __init__(self, spec: TokenSpec, width: int):
        super().__init__()
        self.spec = spec
        sizes = [(level.num_codebooks, level.vocab_size) for level in spec.levels]
        self.weights = nn.ParameterList([torch.empty(g, v, width) for g, v in sizes])
        self.biases = nn.ParameterList([torch.zeros(g, v) for g, v in sizes])
        for weight in self.weights:
            nn.init.normal_(weight, std=0.02)

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b t k"]:
        """Return logits of all T places, -inf beyond a place's own vocabulary."""
        parts = [self._level(part, i) for i, part in enumerate(self._split(hidden))]
        if self.spec.order == "position":
            return torch.stack(parts, dim=2).flatten(1, 2)
        return torch.cat(parts, dim=1)

    def at(self, hidden: Float[Tensor, "b d"], place: int) -> Float[Tensor, "b v"]:
        """Return the logits of one place, as wide as its own vocabulary."""
        index, position = self.spec.level_of_place[place], self.spec.position_of_place[place]
        level = self.spec.levels[index]
        owner = position * level.num_codebooks // level.num_tokens
        return F.linear(hidden, self.weights[index][owner], self.biases[index][owner])

    def _split(self, hidden: Tensor) -> tuple[Tensor, ...]:
        if self.spec.order == "position":
            return rearrange(hidden, "b (n l) d -> l b n d", l=self.spec.num_levels).unbind(0)
        return hidden.split([level.num_tokens for level in self.spec.levels], dim=1)

    def _level(self, hidden: Float[Tensor, "b n d"], index: int) -> Float[Tensor, "b n k"]:
        weight, bias = self.weights[index], self.biases[index]
        batch, num_codebooks = hidden.shape[0], weight.shape[0]
        vectors = rearrange(hidden, "b (g r) d -> g (b r) d", g=num_codebooks)
        logits = torch.baddbmm(bias.unsqueeze(1), vectors, weight.transpose(1, 2))
        logits = rearrange(logits, "g (b r) v -> b (g r) v", b=batch)
        missing = self.spec.max_vocab_size - logits.shape[2]
        return F.pad(logits.float(), (0, missing), value=-torch.inf) if missing else logits


def _parent_places(spec: TokenSpec) -> list[int | None]:
    """Return, for each place whose codebook hangs on the level above, the place of its parent."""
    places = list(zip(spec.level_of_place, spec.position_of_place))
    numbers = {place: number for number, place in enumerate(places)}
    return [
        numbers[level - 1, position] if spec.levels[level].codebook == "path" else None
        for level, position in places
    ]
