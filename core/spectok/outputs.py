"""The results that tokenizers and quantizers return: dataclasses with named fields.

They are pytrees: ``torch.utils._pytree``, data parallel wrappers, ``torch.compile`` and
``torch.export`` see the tensors in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass
class QuantizerOutput:
    """What a quantizer returns for a batch of vectors.

    Args:
        z_q: Quantised vectors. In training their gradient passes straight through to ``z``.
        indices: int64, one index per vector and level.
        losses: Weighted scalar terms; the training objective is their sum.
        metrics: Scalar tensors worth logging, without gradient.
    """

    z_q: Float[Tensor, "b n d"]
    indices: Int[Tensor, "b n l"]
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TokenizerOutput:
    """What a tokenizer returns for a batch of images.

    Args:
        reconstruction: Decoded images, about [-1, 1] (not clamped).
        indices: int64, one row of T tokens per image, laid out as the ``TokenSpec`` says.
        losses: Weighted scalar terms; the training objective is their sum.
        metrics: Scalar tensors worth logging, without gradient.
    """

    reconstruction: Float[Tensor, "b c h w"]
    indices: Int[Tensor, "b t"]
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


for kind in (QuantizerOutput, TokenizerOutput):
    # what torch.export.register_dataclass does, without importing torch.export
    pytree.register_dataclass(kind, serialized_type_name=f"spectok.{kind.__name__}")
