"""CAT: from text to the tokens of any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from spectok.errors import ConfigError
from spectok_generation.conditions import Condition, TextFeatures, with_null
from spectok_generation.priors.backbone import GPT2Prior
from spectok_generation.priors.layout import (
    AttentionKind,
    BlockKind,
    Count,
    Layout,
    PositionKind,
    Rate,
    Shape,
)
from spectok_generation.priors.orders import RASTER, Annealing, Fraction, OrderKind
from spectok_generation.priors.positions import INIT_STD

SIZES = {  # layers, heads, width, width of a head
    "cat-micro": (4, 6, 192, None),
    "cat-small": (6, 6, 384, None),
    "cat-large": (24, 24, 1536, None),
    "cat-released": (24, 16, 1536, 64),
}
Size = Literal["cat-micro", "cat-small", "cat-large", "cat-released"]
TextConditioning = Literal["cross", "pooled", "prefix"]


class CAT(GPT2Prior):
    """Cross-attention autoregressive transformer (FA-VAE, Lin et al. 2023, section 3.2).

    Every block attends to *all* token embeddings of the text, where most models of its time used
    only the pooled vector, or read the text before the image. ``text_conditioning`` has these too,
    to compare with. See :class:`GPT2Prior` for the rest.

        text: features (B,L,E), mask (B,L)
          | pool               "pooled": the vector of the last token alone, L = 1
          | read_text          layer norm, linear
        vectors (B,L,D)
          | null_text          prepended; always present, and all there is of "no text"
        (B,1+L,D)              "cross", "pooled": keys and values of the cross-attention in every
                               block; "prefix": inputs before the start of the sequence

    ``"pooled"`` is the same network with the same number of weights, given one vector instead of
    all. A CLIP pools at the end-of-text token, which is the last that its features hold, so caches
    of text features serve all forms. ``"prefix"`` has no cross-attention, and so fewer weights. Its
    text has no place embeddings of its own, since the encoder has told the order of its tokens;
    the loss is on the image's tokens alone.

    The paper names GPT-2. The authors' code differs, and what it does can be switched on: multi-
    query attention with one projection for keys and values, two-dimensional positions, output
    weights tied to the embeddings, and a block without biases (``cat-released`` has its sizes). The
    learned null entry is as in their code throughout. The layer norm removes the scale of the text
    encoder.

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Always 0: it is conditioned on text.
        tokenizer: Record of the tokenizer whose tokens these are.
        text: Record of the text encoder; see :attr:`spectok_generation.text.TextEncoder.record`.
        size: A preset, which the next four arguments override. ``cat-large`` has the paper's depth
            and width, ``cat-released`` also the 16 heads of length 64 of the authors' code.
        num_layers: Transformer blocks.
        num_heads: Attention heads.
        width: Length D of the hidden vectors.
        head_width: Length of the vectors of one head. None: that of ``size`` if it has one, and
            width / num_heads otherwise.
        dropout: On embeddings, attention and residual branches; with ``block="released"`` on what
            attention reads and asks with.
        condition_dropout: Fraction of training images whose text is hidden; 0.25 in the authors'
            code.
        text_conditioning: ``"cross"``: attention to all tokens of the text; ``"pooled"``: to its
            pooled vector; ``"prefix"``: self-attention only, with the text before the image.
        attention: ``"multi_head"``, or ``"multi_query"``: all heads read one vector per place,
            which is key and value at once.
        positions: ``"absolute"``: an embedding per place; ``"relative_2d"``: one per row and one
            per column, and in each block a bias per head and offset on the grid.
        tied_embeddings: Whether output weights are the embeddings of the codes.
        block: ``"gpt2"``, or ``"released"``: no biases, a layer norm inside the feed-forward part,
            a learned null entry in self-attention.
        order: ``"raster"``: training predicts places in the order of the spec; ``"random"``: at
            first in random orders, as RAR does (Yu et al. 2024, section 3.2), with an embedding
            more per place; see :func:`~spectok_generation.priors.orders.draw_orders`.
        random_until: With ``"random"``, fraction of the run up to which all images have a random
            order; from there on fewer and fewer.
        raster_from: With ``"random"``, fraction of the run from which none has.

    Raises:
        ConfigError: If there is no text encoder, or an option does not fit it or the tokens.
    """

    needs_text = True
    added_options: ClassVar[Mapping[str, Any]] = {
        "head_width": None,
        "text_conditioning": "cross",
        "attention": "multi_head",
        "positions": "absolute",
        "tied_embeddings": False,
        "block": "gpt2",
        **RASTER,
    }

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
        head_width: Count | None = None,
        dropout: Rate = 0.1,
        condition_dropout: Rate = 0.25,
        text_conditioning: TextConditioning = "cross",
        attention: AttentionKind = "multi_head",
        positions: PositionKind = "absolute",
        tied_embeddings: bool = False,
        block: BlockKind = "gpt2",
        order: OrderKind = "raster",
        random_until: Fraction = 0.5,
        raster_from: Fraction = 0.75,
    ):
        if text is None or num_classes:
            raise ConfigError("CAT reads text, not classes; give the record of a text encoder")
        if text_conditioning == "pooled" and not text.get("pools_last_token", True):
            raise ConfigError(
                f"prior.text_conditioning: the text encoder {text.get('path')} does not pool at "
                f"the last token of a text, so its features lack the pooled one; use cross or "
                f"prefix, or an encoder that does, such as ViT-L-14"
            )
        layers, heads, wide, long = SIZES[size]
        shape = Shape(num_layers or layers, num_heads or heads, width or wide, head_width or long)
        has_prefix = text_conditioning == "prefix"
        super().__init__(
            token_spec,
            shape,
            dropout,
            Layout(attention, positions, block, tied_embeddings, not has_prefix, has_prefix),
            Annealing.of(order, random_until, raster_from),
            condition_dropout=condition_dropout,
            text_width=text["width"],
        )
        self.text_conditioning = text_conditioning
        self.start_vector = nn.Parameter(torch.empty(shape.width))
        self.null_text = nn.Parameter(torch.empty(shape.width))
        self.read_text = nn.Sequential(
            nn.LayerNorm(text["width"]), nn.Linear(text["width"], shape.width)
        )
        for parameter in (self.start_vector, self.null_text):
            nn.init.normal_(parameter, std=INIT_STD)

    def start_inputs(self, condition: Condition) -> Float[Tensor, "b d"]:
        """Return the learned first input."""
        return self.start_vector.expand(len(condition), -1)

    def context(self, condition: Condition) -> TextFeatures | None:
        """Return the texts as the blocks see them, with the null entry first."""
        return None if self.text_conditioning == "prefix" else self._read(condition)

    def prefix(self, condition: Condition) -> TextFeatures | None:
        """Return the texts as they come before the sequence, with the null entry first."""
        return self._read(condition) if self.text_conditioning == "prefix" else None

    def _read(self, condition: Condition) -> TextFeatures:
        assert isinstance(condition, TextFeatures), "CAT is conditioned on text"
        if self.text_conditioning == "pooled":
            condition = pool(condition)
        return with_null(condition, self.read_text(condition.features), self.null_text)


def pool(text: TextFeatures) -> TextFeatures:
    """Return the vector of the last token of each text, at which CLIP pools; of no text, none."""
    places = torch.arange(text.mask.shape[1], device=text.mask.device)
    last = (places * text.mask).amax(1)
    rows = torch.arange(len(text), device=last.device)
    return TextFeatures(text.features[rows, last][:, None], text.mask.any(1, keepdim=True))
