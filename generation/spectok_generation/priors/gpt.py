"""minGPT over the tokens of any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from spectok_generation.conditions import Condition
from spectok_generation.priors.backbone import GPT2Prior
from spectok_generation.priors.layout import GPT2, Count, Rate, Shape
from spectok_generation.priors.levels import TOKEN_BY_TOKEN, PredictKind
from spectok_generation.priors.orders import RASTER, Annealing, Fraction, OrderKind
from spectok_generation.priors.positions import INIT_STD

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


class GPT(GPT2Prior):
    """GPT-2 blocks (Radford et al. 2019) in the sizes of Karpathy's minGPT, over a ``TokenSpec``.

    The class, if there is one, is the first input; see :class:`GPT2Prior` for the rest.

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Number of classes; 0 for an unconditional prior.
        tokenizer: Record of the tokenizer whose tokens these are.
        size: A minGPT size, which the next three arguments override.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide the width.
        width: Length D of the hidden vectors.
        dropout: On embeddings, attention and residual branches.
        condition_dropout: Fraction of training images whose class is hidden.
        order: ``"raster"``: training predicts places in the order of the spec; ``"random"``: at
            first in random orders, as RAR does (Yu et al. 2024, section 3.2), with an embedding
            more per place; see :func:`~spectok_generation.priors.orders.draw_orders`.
        random_until: With ``"random"``, fraction of the run up to which all images have a random
            order; from there on fewer and fewer.
        raster_from: With ``"random"``, fraction of the run from which none has.
        predict: ``"token"``: one token after the other; ``"level"``: those of the first level so,
            and those of each level below at once; see
            :class:`~spectok_generation.priors.levels.LevelPlan`. For tokens of several levels.
        tied_embeddings: Whether output weights are the embeddings of the codes (Press and Wolf
            2017), which halves them. minGPT's are not.

    Raises:
        ConfigError: If the size is impossible, random orders would end before they begin to, or
            the tokens have no levels that could be predicted at once.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"class_dropout": "condition_dropout"}
    added_options: ClassVar[Mapping[str, Any]] = {
        **RASTER,
        **TOKEN_BY_TOKEN,
        "tied_embeddings": False,
    }

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
        condition_dropout: Rate = 0.0,
        order: OrderKind = "raster",
        random_until: Fraction = 0.5,
        raster_from: Fraction = 0.75,
        predict: PredictKind = "token",
        tied_embeddings: bool = False,
    ):
        layers, heads, wide = SIZES[size]
        shape = Shape(num_layers or layers, num_heads or heads, width or wide)
        super().__init__(
            token_spec,
            shape,
            dropout,
            replace(GPT2, tied_embeddings=tied_embeddings),
            Annealing.of(order, random_until, raster_from),
            predict == "level",
            num_classes=num_classes,
            condition_dropout=condition_dropout,
        )
        self.start_vectors = nn.Embedding(num_classes + 1, shape.width)  # the last one: no class
        nn.init.normal_(self.start_vectors.weight, std=INIT_STD)

    def start_inputs(self, condition: Condition) -> Float[Tensor, "b d"]:
        """Return the vector of each class."""
        assert isinstance(condition, Tensor), "GPT is conditioned on classes"
        return self.start_vectors(condition)
