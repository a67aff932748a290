"""MaskGIT over the tokens of any tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok.errors import ConfigError
from spectok_generation.conditions import Condition, TextFeatures, with_null
from spectok_generation.guidance import LARGEST_SCALE
from spectok_generation.masked.base import MaskedPrior
from spectok_generation.priors.codebooks import CodebookHead
from spectok_generation.priors.layout import Count, Layout, Rate, Shape
from spectok_generation.priors.positions import INIT_STD
from spectok_generation.priors.transformer import Block, View

SIZES = {  # layers, heads, width
    "maskgit-nano": (3, 3, 48),
    "maskgit-micro": (4, 4, 128),
    "maskgit-mini": (6, 6, 192),
    "maskgit-small": (8, 8, 512),
    "maskgit-large": (24, 8, 768),
}
Size = Literal["maskgit-nano", "maskgit-micro", "maskgit-mini", "maskgit-small", "maskgit-large"]
Randomness = Annotated[float, Field(ge=0, le=LARGEST_SCALE, allow_inf_nan=False)]
EMBEDDINGS = ("code_vectors", "place_vectors", "hidden_vector", "class_vectors", "null_text")


class SeeingAll(nn.Module):
    """A block whose places see one another, and a context.

    Args:
        shape: Size of the transformer.
        layout: Its variant.
        dropout: Rate.
    """

    def __init__(self, shape: Shape, layout: Layout, dropout: float):
        super().__init__()
        self.block = Block(shape, layout, None, dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], context: TextFeatures | None
    ) -> Float[Tensor, "b n d"]:
        """Map the vectors of all places."""
        everywhere = View(None, torch.arange(x.shape[1], device=x.device))
        found = None if context is None else self.block.read_context(context)
        return self.block(x, everywhere, found)


class MaskGIT(MaskedPrior):
    """Masked generative image transformer (Chang et al., CVPR 2022) over a ``TokenSpec``.

        indices (B,T), visible (B,T)
          | token_spec.code_ids     which code of which codebook; hidden ones: a learned vector
        x (B,T,D)                 + place embedding
          |                       + code of the parent, if it selects the codebook of a place
          |                       class (B,D): one more input, first
        blocks                    every place sees all others; with a text, also its vectors
          |
        hidden (B,T,D)
          | head                  each codebook has its own weights; K logits per place
        logits (B,T,K)

    Images are drawn in a few steps, many tokens at once; see
    :func:`~spectok_generation.masked.sample_masked`. Any tokens can be kept and the rest drawn, in
    whatever place they are.

    A text is read as ``cat`` reads it, by cross-attention to all its tokens; the paper has classes
    alone. Blocks are GPT-2's, with layer norms before attention, where the released code has
    BERT's, with norms after it; output weights are one matrix per codebook and not the embeddings
    of the codes, because codebooks may belong to places or paths.

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Number of classes; 0 for a prior without, or of texts.
        tokenizer: Record of the tokenizer whose tokens these are.
        text: Record of the text encoder, for a prior that reads text.
        size: A preset, which the next three arguments override. ``maskgit-large`` is the paper's.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide the width.
        width: Length D of the hidden vectors.
        dropout: On embeddings, attention and residual branches; 0.1 in the paper.
        condition_dropout: Fraction of training images whose class or text is hidden.
        label_smoothing: Share of each target that is spread over all codes; 0.1 in the paper.
        num_steps: Steps in which images are drawn unless the caller says otherwise; 8 in the paper.
        choice_temperature: Randomness of the order of drawing unless the caller says otherwise;
            4.5 in the released code.

    Raises:
        ConfigError: If there are classes and a text encoder, or the options do not fit the tokens.
    """

    shard_units = ("SeeingAll",)

    @register_to_config
    def __init__(
        self,
        *,
        token_spec: dict[str, Any],
        num_classes: int = 0,
        tokenizer: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        size: Size = "maskgit-mini",
        num_layers: Count | None = None,
        num_heads: Count | None = None,
        width: Count | None = None,
        dropout: Rate = 0.1,
        condition_dropout: Rate = 0.0,
        label_smoothing: Rate = 0.1,
        num_steps: Count = 8,
        choice_temperature: Randomness = 4.5,
    ):
        if text is not None and num_classes:
            raise ConfigError("MaskGIT is given classes or a text encoder, not both; leave one out")
        super().__init__(
            token_spec,
            num_steps,
            choice_temperature,
            label_smoothing,
            num_classes=num_classes,
            condition_dropout=condition_dropout,
            text_width=0 if text is None else text["width"],
        )
        layers, heads, wide = SIZES[size]
        shape = Shape(num_layers or layers, num_heads or heads, width or wide)
        layout, spec = Layout(cross_attention=text is not None), self.token_spec
        self.code_vectors = nn.Embedding(spec.num_codes, shape.width)
        self.place_vectors = nn.Embedding(spec.num_tokens, shape.width)
        self.hidden_vector = nn.Parameter(torch.empty(shape.width))
        if text is None:
            self.class_vectors = nn.Embedding(
                num_classes + 1, shape.width
            )  # the last one: no class
        else:
            self.null_text = nn.Parameter(torch.empty(shape.width))
            norm = nn.LayerNorm(text["width"])  # removes the scale of the text encoder
            self.read_text = nn.Sequential(norm, nn.Linear(text["width"], shape.width))
        self.drop = nn.Dropout(dropout)
        blocks = [SeeingAll(shape, layout, dropout) for _ in range(shape.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(shape.width)
        self.head = CodebookHead(spec, shape.width)
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] in EMBEDDINGS:
                nn.init.normal_(parameter, std=INIT_STD)

    def logits(
        self, indices: Int[Tensor, "b t"], visible: Bool[Tensor, "b t"], condition: Condition
    ) -> Float[Tensor, "b t k"]:
        """See :meth:`MaskedPrior.logits`."""
        x, num_tokens = self._inputs(indices, visible), indices.shape[1]
        context = None
        if isinstance(condition, TextFeatures):
            context = with_null(condition, self.read_text(condition.features), self.null_text)
        else:
            x = torch.cat([self.class_vectors(condition)[:, None], x], dim=1)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, context)
        return self.head(self.norm(x[:, -num_tokens:]))

    def _inputs(
        self, indices: Int[Tensor, "b t"], visible: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t d"]:
        codes = self.token_spec.code_ids(torch.where(visible, indices, 0))
        seen = visible[:, :, None]
        x = torch.where(seen, self.code_vectors(codes), self.hidden_vector)
        x = x + self.place_vectors.weight
        if len(self.masking.depths) > 1:
            above = self.masking.above(codes.device)
            is_told = self.masking.has_parent(codes.device)[:, None] & seen[:, above]
            x = x + torch.where(is_told, self.code_vectors(codes[:, above]), 0.0)
        return x
