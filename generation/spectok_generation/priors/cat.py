"""CAT: from text to the tokens of any tokenizer."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import ConfigError
from spectok_generation.conditions import Condition, TextFeatures
from spectok_generation.priors.backbone import Count, GPT2Prior, Rate, Shape

SIZES = {  # layers, heads, width
    "cat-micro": (4, 6, 192),
    "cat-small": (6, 6, 384),
    "cat-large": (24, 24, 1536),
}
Size = Literal["cat-micro", "cat-small", "cat-large"]


class CAT(GPT2Prior):
    """Cross-attention autoregressive transformer (FA-VAE, Lin et al. 2023, section 3.4).

    Every block attends to *all* token embeddings of the text, where most models of its time used
    only the pooled vector. See :class:`GPT2Prior` for the rest.

        text: features (B,L,E), mask (B,L)
          | read_text          layer norm, linear
        vectors (B,L,D)
          | null_text          prepended; always present, and the whole context of "no text"
        context (B,1+L,D)      keys and values of the cross-attention in every block

    The paper names GPT-2, but the authors' code uses multi-query attention with one shared
    projection for keys and values, two-dimensional relative positions, and output weights tied to
    the embeddings. This class uses the standard GPT-2 block; the learned null entry is as in their
    code. The layer norm removes the scale of the text encoder.

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Always 0: it is conditioned on text.
        tokenizer: Record of the tokenizer whose tokens these are.
        text: Record of the text encoder; see :attr:`spectok_generation.text.TextEncoder.record`.
        size: A preset, which the next three arguments override. ``cat-large`` is the paper's.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide the width.
        width: Length D of the hidden vectors.
        dropout: On embeddings, attention and residual branches.
        condition_dropout: Fraction of training images whose text is hidden; 0.25 in the authors'
            code.
    """

    needs_text = True

    @register_to_config
    def __init__(
        self,
        *,
        token_spec: dict[str, Any],
        num_classes: int = 0,
        tokenizer: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        size: Size = "cat-small",
        num_layers: Count | None = None,
        num_heads: Count | None = None,
        width: Count | None = None,
        dropout: Rate = 0.1,
        condition_dropout: Rate = 0.25,
    ):
        if text is None or num_classes:
            raise ConfigError("CAT reads text, not classes; give the record of a text encoder")
        layers, heads, wide = SIZES[size]
        shape = Shape(num_layers or layers, num_heads or heads, width or wide)
        super().__init__(
            token_spec,
            shape,
            dropout,
            cross_attention=True,
            condition_dropout=condition_dropout,
            text_width=text["width"],
        )
        self.start_vector = nn.Parameter(torch.empty(shape.width))
        self.null_text = nn.Parameter(torch.empty(shape.width))
        self.read_text = nn.Sequential(
            nn.LayerNorm(text["width"]), nn.Linear(text["width"], shape.width)
        )
        for parameter in (self.start_vector, self.null_text):
            nn.init.normal_(parameter, std=self.backbone.config.initializer_range)

    def start_inputs(self, condition: Condition) -> Float[Tensor, "b d"]:
        """Return the learned first input."""
        return self.start_vector.expand(len(condition), -1)

    def context(self, condition: Condition) -> TextFeatures:
        """Return the texts as the blocks see them, with the null entry first."""
        assert isinstance(condition, TextFeatures), "CAT is conditioned on text"
        null = self.null_text.expand(len(condition), 1, -1)
        vectors = self.read_text(condition.features)
        return TextFeatures(
            torch.cat([null, vectors], dim=1), F.pad(condition.mask, (1, 0), value=True)
        )
