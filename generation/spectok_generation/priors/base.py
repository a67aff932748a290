"""The prior contract: a model of ``p(indices | class)`` built from a ``TokenSpec`` alone."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import TokenSpec
from spectok.distributed import draw_per_sample
from spectok.errors import InputError
from spectok.modeling import SpectokModel


@dataclass
class PriorOutput:
    """What a prior makes of a batch of tokens.

    Args:
        losses: Weighted scalar terms; the training objective is their sum.
        metrics: Scalar tensors worth logging, without gradient.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Prior(SpectokModel, ABC):
    """A model of one tokenizer's tokens that never asks which tokenizer it is.

    A subclass's constructor, decorated with ``register_to_config``, takes ``token_spec``,
    ``num_classes`` and ``tokenizer`` by keyword, then its own options; that signature is the
    schema of the recipe section ``prior:``. It passes the first two on to this class.

    Args:
        token_spec: Layout of the tokens, as :meth:`spectok.TokenSpec.to_dict` writes it.
        num_classes: Number of classes of a class-conditional prior; 0 for an unconditional one.
    """

    def __init__(self, token_spec: dict[str, Any], num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self._spec = TokenSpec.from_dict(token_spec)

    @property
    def token_spec(self) -> TokenSpec:
        """Layout of the tokens that this prior models."""
        return self._spec

    @property
    def tokenizer_record(self) -> dict[str, Any]:
        """What is known of the tokenizer: its fingerprint, path, image shape and class names."""
        return dict(self.config["tokenizer"] or {})

    @abstractmethod
    def forward(
        self, indices: Int[Tensor, "b t"], labels: Int[Tensor, "b"] | None = None
    ) -> PriorOutput:
        """Return the losses of a batch of tokens.

        Args:
            indices: int64 tokens laid out as :attr:`token_spec` says.
            labels: Class of each image, for a class-conditional prior.
        """

    def check_labels(self, labels: Int[Tensor, "b"] | None, batch_size: int) -> Int[Tensor, "b"]:
        """Return one class per image; ``num_classes`` itself stands for "no class".

        Raises:
            InputError: If a class is out of range or given to an unconditional prior.
        """
        if labels is None:
            return torch.full((batch_size,), self.num_classes, device=self.device)
        if self.num_classes == 0:
            raise InputError("labels were given to a prior without classes; leave them out")
        if labels.shape != (batch_size,):
            raise InputError(f"labels of shape {tuple(labels.shape)} are not ({batch_size},)")
        if ((labels < 0) | (labels >= self.num_classes)).any():
            wrong = int(labels[(labels < 0) | (labels >= self.num_classes)][0])
            raise InputError(f"class {wrong} is outside 0..{self.num_classes - 1}")
        return labels.long().to(self.device)


class AutoregressivePrior(Prior):
    """A prior that factors ``p(indices)`` place by place, in the order of the ``TokenSpec``.

    A subclass defines :meth:`logits` for all places at once, and :meth:`start` and
    :meth:`next_logits` for the sampler. The likelihood is exact.

    Args:
        token_spec: See :class:`Prior`.
        num_classes: See :class:`Prior`.
        class_dropout: Share of training images whose class is hidden, which classifier-free
            guidance and likelihoods without a class need.
    """

    def __init__(self, token_spec: dict[str, Any], num_classes: int, class_dropout: float = 0.0):
        super().__init__(token_spec, num_classes)
        self.class_dropout = class_dropout

    @abstractmethod
    def logits(
        self, indices: Int[Tensor, "b t"], labels: Int[Tensor, "b"]
    ) -> Float[Tensor, "b t k"]:
        """Return logits of each place given the places before it.

        K is the largest vocabulary; entries beyond a place's own vocabulary are -inf.

        Args:
            indices: Valid tokens.
            labels: Checked classes; ``num_classes`` stands for "no class".
        """

    @abstractmethod
    def start(self, labels: Int[Tensor, "b"]) -> Any:
        """Return the state of a new batch of sequences, its cache allocated for all T places.

        Args:
            labels: Checked classes; ``num_classes`` stands for "no class".
        """

    @abstractmethod
    def next_logits(self, state: Any, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b v"]:
        """Return float32 logits of place k, exactly as wide as that place's vocabulary.

        Args:
            state: What :meth:`start` returned; updated in place. Only tokens it has not yet seen
                are computed, so calls must extend the sequence.
            indices: The first k tokens, 0 <= k < T.
        """

    def forward(
        self, indices: Int[Tensor, "b t"], labels: Int[Tensor, "b"] | None = None
    ) -> PriorOutput:
        """Return the mean negative log-likelihood, in nats per token, and its size in bits."""
        labels = self.check_labels(labels, indices.shape[0])
        if self.training and self.class_dropout > 0 and self.num_classes:
            hidden = draw_per_sample(indices.shape[0]) < self.class_dropout
            labels = labels.masked_fill(hidden.to(labels.device), self.num_classes)
        nll = -self._token_log_probs(indices, labels).mean()
        bits = nll.detach() / math.log(2)
        metrics = {"bits_per_token": bits}
        if self._num_pixels:
            metrics["bits_per_dim"] = bits * self.token_spec.num_tokens / self._num_pixels
        return PriorOutput({"nll": nll}, metrics)

    @torch.no_grad()
    def log_prob(
        self, indices: Int[Tensor, "b t"], labels: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b"]:
        """Return ``log p(indices | class)`` of each image, in nats.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If the prior needs a class and none is given.
        """
        self.token_spec.validate(indices)
        self.check_can_omit(labels)
        return self._token_log_probs(indices, self.check_labels(labels, len(indices))).sum(1)

    def check_can_omit(self, labels: Tensor | None) -> None:
        """Refuse to leave the class out where the prior was never trained without one.

        Raises:
            InputError: With the remedy.
        """
        if labels is None and self.num_classes and self.class_dropout == 0:
            raise InputError(
                f"this prior was trained with the class always given (class_dropout=0): give one "
                f"of its {self.num_classes} classes, and train with class_dropout for guidance"
            )

    def _token_log_probs(self, indices: Tensor, labels: Tensor) -> Float[Tensor, "b t"]:
        log_probs = self.logits(indices, labels).float().log_softmax(-1)
        return log_probs.gather(2, indices.unsqueeze(2)).squeeze(2)

    @functools.cached_property
    def _num_pixels(self) -> int:
        shape = self.tokenizer_record.get("image_shape")
        return math.prod(shape) if shape else 0
