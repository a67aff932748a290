"""The prior contract: a model of ``p(indices | condition)`` built from a ``TokenSpec`` alone."""

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
from spectok_generation.conditions import (
    Condition,
    TextFeatures,
    check_labels,
    check_text,
    hide,
)


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

    It is conditioned on nothing, on a class or on a text; see :mod:`spectok_generation.conditions`.

    A subclass's constructor, decorated with ``register_to_config``, takes ``token_spec``,
    ``num_classes`` and ``tokenizer`` by keyword, and ``text`` if it reads text, then its own
    options; that signature is the schema of the recipe section ``prior:``.

    Args:
        token_spec: Layout of the tokens, as :meth:`spectok.TokenSpec.to_dict` writes it.
        num_classes: Number of classes of a class-conditional prior; 0 for any other.
        condition_dropout: Share of training images whose class or text is hidden, which
            classifier-free guidance and likelihoods without a condition need.
        text_width: Length of the text features of a text-conditional prior; 0 for any other.

    Attributes:
        needs_text: Whether there is no such prior without a text encoder.
    """

    needs_text: bool = False

    def __init__(
        self,
        token_spec: dict[str, Any],
        num_classes: int = 0,
        condition_dropout: float = 0.0,
        text_width: int = 0,
    ):
        super().__init__()
        self.num_classes, self.text_width = num_classes, text_width
        self.condition_dropout = condition_dropout
        self._spec = TokenSpec.from_dict(token_spec)

    @property
    def token_spec(self) -> TokenSpec:
        """Layout of the tokens that this prior models."""
        return self._spec

    @property
    def tokenizer_record(self) -> dict[str, Any]:
        """What is known of the tokenizer: its fingerprint, path, image shape and class names."""
        return dict(self.config["tokenizer"] or {})

    @property
    def condition_name(self) -> str | None:
        """What it is conditioned on: ``"class"``, ``"text"`` or None."""
        return "text" if self.text_width else "class" if self.num_classes else None

    @abstractmethod
    def forward(self, inputs: Tensor, condition: Condition | None = None) -> PriorOutput:
        """Return the losses of a batch.

        Args:
            inputs: int64 tokens laid out as :attr:`token_spec` says; or, for a prior that models
                them before they are quantised, the tokenizer's latents.
            condition: Class or text of each image, for a prior that takes one.
        """

    def check_condition(self, condition: Condition | None, batch_size: int) -> Condition:
        """Return one condition per image, on this prior's device; None becomes "no condition".

        Raises:
            InputError: If it is not of the kind, number or range that this prior takes.
        """
        if condition is None:
            return self.null_condition(batch_size)
        if isinstance(condition, TextFeatures):
            return check_text(condition, self.text_width, batch_size).to(self.device)
        return check_labels(condition, self.num_classes, batch_size).to(self.device)

    def null_condition(self, batch_size: int) -> Condition:
        """Return "no condition" for each image of a batch."""
        if self.text_width:
            return TextFeatures.none(batch_size, self.text_width, self.device)
        return torch.full((batch_size,), self.num_classes, device=self.device)

    def drop_condition(self, condition: Condition) -> Condition:
        """Hide the condition of some images, in training, as ``condition_dropout`` says."""
        if not self.training or self.condition_dropout == 0 or self.condition_name is None:
            return condition
        hidden = draw_per_sample(len(condition)) < self.condition_dropout
        return hide(condition, hidden, self.num_classes)

    def check_can_omit(self, condition: Condition | None) -> None:
        """Refuse to leave the condition out where the prior was never trained without one.

        Raises:
            InputError: With the remedy.
        """
        if condition is not None or self.condition_name is None or self.condition_dropout:
            return
        kind = self.condition_name
        one = f"one of its {self.num_classes} classes" if kind == "class" else "a text"
        raise InputError(
            f"this prior was trained with the {kind} always given (condition_dropout=0): give "
            f"{one}, and train with condition_dropout for guidance"
        )

    def compile_step(self) -> None:
        """Run the steps of sampling through ``torch.compile`` from now on.

        Raises:
            InputError: If this prior's steps are not made for that.
        """
        raise InputError(
            f"the steps of a {type(self).__name__} are not made for torch.compile; sample without"
        )


class AutoregressivePrior(Prior):
    """A prior that factors ``p(indices)`` place by place, in the order of the ``TokenSpec``.

    A subclass defines :meth:`logits` for all places at once, and :meth:`start`,
    :meth:`next_logits` and :meth:`keep_rows` for the sampler. The likelihood is exact.
    """

    @abstractmethod
    def logits(self, indices: Int[Tensor, "b t"], condition: Condition) -> Float[Tensor, "b t k"]:
        """Return logits of each place given the places before it.

        K is the largest vocabulary; entries beyond a place's own vocabulary are -inf.

        Args:
            indices: Valid tokens.
            condition: A checked condition; see :meth:`Prior.check_condition`.
        """

    @abstractmethod
    def start(self, condition: Condition) -> Any:
        """Return the state of a new batch of sequences, its cache allocated for all T places.

        Args:
            condition: A checked condition; see :meth:`Prior.check_condition`.
        """

    @abstractmethod
    def next_logits(self, state: Any, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b v"]:
        """Return float32 logits of place k, exactly as wide as that place's vocabulary.

        Args:
            state: What :meth:`start` returned; updated in place. Only tokens it has not yet seen
                are computed, so calls must extend the sequence.
            indices: The first k tokens, 0 <= k < T.
        """

    @abstractmethod
    def keep_rows(self, state: Any, count: int) -> None:
        """Drop all but the first sequences of a batch that :meth:`start` began.

        Args:
            state: What :meth:`start` returned; updated in place.
            count: How many to keep.
        """

    def forward(
        self, indices: Int[Tensor, "b t"], condition: Condition | None = None
    ) -> PriorOutput:
        """Return the mean negative log-likelihood, in nats per token, and its size in bits."""
        condition = self.drop_condition(self.check_condition(condition, indices.shape[0]))
        nll = -self._token_log_probs(indices, condition).mean()
        bits = nll.detach() / math.log(2)
        metrics = {"bits_per_token": bits}
        if self._num_pixels:
            metrics["bits_per_dim"] = bits * self.token_spec.num_tokens / self._num_pixels
        return PriorOutput({"nll": nll}, metrics)

    @torch.no_grad()
    def log_prob(
        self, indices: Int[Tensor, "b t"], condition: Condition | None = None
    ) -> Float[Tensor, "b"]:
        """Return ``log p(indices | condition)`` of each image, in nats.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If the prior needs a condition and none is given.
        """
        self.token_spec.validate(indices)
        self.check_can_omit(condition)
        checked = self.check_condition(condition, len(indices))
        return self._token_log_probs(indices, checked).sum(1)

    def _token_log_probs(self, indices: Tensor, condition: Condition) -> Float[Tensor, "b t"]:
        log_probs = self.logits(indices, condition).float().log_softmax(-1)
        return log_probs.gather(2, indices.unsqueeze(2)).squeeze(2)

    @functools.cached_property
    def _num_pixels(self) -> int:
        shape = self.tokenizer_record.get("image_shape")
        return math.prod(shape) if shape else 0
