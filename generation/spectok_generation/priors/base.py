"""The contract of priors: models of ``p(indices | condition)`` built from a ``TokenSpec`` alone."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

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
from spectok_generation.priors.codebooks import at_least_float32
from spectok_generation.records import check_record


@dataclass
class PriorOutput:
    """Losses and metrics of a batch.

    Args:
        losses: Weighted scalar terms; the training objective is their sum.
        metrics: Scalar tensors to log, without gradient.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Prior(SpectokModel, ABC):
    """A model of the tokens of a tokenizer, independent of which tokenizer that is.

    It is conditioned on nothing, a class or a text; see :mod:`spectok_generation.conditions`.

    The constructor of a subclass, decorated with ``register_to_config``, takes ``token_spec``,
    ``num_classes``, ``tokenizer``, ``text`` (if it reads text) and its own options, all by keyword.
    Its signature is the schema of the recipe section ``prior:``.

    Args:
        token_spec: Layout of the tokens, as :meth:`spectok.TokenSpec.to_dict` writes it.
        num_classes: Number of classes of a class-conditional prior; 0 for any other.
        condition_dropout: Fraction of training images whose class or text is hidden; required for
            classifier-free guidance and for likelihoods without a condition.
        text_width: Length of the text features of a text-conditional prior; 0 for any other.

    Attributes:
        likelihood: What a method ``log_prob(indices, condition)`` gives: ``"exact"``, the
            log-probability of each image's tokens; ``"bound"``, a number that is at most that in
            expectation; None: there is no such method.
        needs_text: Whether such a prior always reads text, and so needs a text encoder.
        shard_units: Classes of the modules that FSDP gathers one at a time. Training may use such a
            module, and what is in it, only by calling it.
    """

    likelihood: Literal["exact", "bound"] | None = None
    needs_text: bool = False
    shard_units: tuple[str, ...] = ()

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
        """Layout of the tokens."""
        return self._spec

    @property
    def tokenizer_record(self) -> dict[str, Any]:
        """Record of the tokenizer: fingerprint, path, image shape and class names."""
        return dict(check_record(self.config["tokenizer"] or {}, "tokenizer of the prior's config"))

    @property
    def condition_name(self) -> str | None:
        """Kind of condition: ``"class"``, ``"text"`` or None."""
        return "text" if self.text_width else "class" if self.num_classes else None

    @abstractmethod
    def forward(self, inputs: Tensor, condition: Condition | None = None) -> PriorOutput:
        """Return the losses of a batch.

        Args:
            inputs: int64 tokens in the layout of :attr:`token_spec`; for a prior of latents, the
                latents of the tokenizer.
            condition: Class or text of each image, for a prior that takes one.
        """

    def check_condition(self, condition: Condition | None, batch_size: int) -> Condition:
        """Return one condition per image, on this prior's device; None becomes "no condition".

        In training, classes that are on a GPU already are not compared with the number of classes,
        because every step would wait for that; data sets check theirs before the first one.

        Raises:
            InputError: If its kind, number or range is not what this prior takes.
        """
        if condition is None:
            return self.null_condition(batch_size)
        if isinstance(condition, TextFeatures):
            checked = check_text(condition, self.text_width, batch_size)
            return checked.to(self.device, self.dtype)
        look = condition.device.type == "cpu" or not self.training
        return check_labels(condition, self.num_classes, batch_size, look=look).to(self.device)

    def null_condition(self, batch_size: int) -> Condition:
        """Return "no condition" for each image of a batch."""
        if self.text_width:
            none = TextFeatures.none(batch_size, self.text_width)
            return none.to(self.device, self.dtype)
        return torch.full((batch_size,), self.num_classes, device=self.device)

    def drop_condition(self, condition: Condition) -> Condition:
        """Hide the condition of a random fraction ``condition_dropout`` of images, in training."""
        if not self.training or self.condition_dropout == 0 or self.condition_name is None:
            return condition
        hidden = draw_per_sample(len(condition)) < self.condition_dropout
        return hide(condition, hidden, self.num_classes)

    def begin_step(self, step: int, num_steps: int) -> None:
        """Note how far training is; called first in each optimiser step, on all ranks alike.

        What changes in the course of a run is a function of these numbers, so that a run that is
        resumed does what it would have done.

        Args:
            step: Number of the step, counted from 0.
            num_steps: Steps of the whole run.
        """

    def check_can_omit(self, condition: Condition | None) -> None:
        """Check that a missing condition is something this prior was trained for.

        Raises:
            InputError: If it was never trained without its condition.
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
        """Run the sampling steps through ``torch.compile`` from now on.

        Raises:
            InputError: If this prior does not support it.
        """
        raise InputError(
            f"the steps of {type(self).__name__} do not support torch.compile; leave it out"
        )


class AutoregressivePrior(Prior):
    """A prior that factorises ``p(indices)`` place by place, in the order of the ``TokenSpec``.

    A subclass defines :meth:`logits` for all places at once, and :meth:`start`,
    :meth:`next_logits` and :meth:`keep_rows` for the sampler. The likelihood is exact.
    """

    likelihood = "exact"

    @abstractmethod
    def logits(self, indices: Int[Tensor, "b t"], condition: Condition) -> Float[Tensor, "b t k"]:
        """Return the logits of each place given the places before it.

        K is the size of the largest vocabulary; entries beyond the vocabulary of a place are -inf.

        Args:
            indices: Valid tokens.
            condition: A checked condition; see :meth:`Prior.check_condition`.
        """

    def training_logits(
        self, indices: Int[Tensor, "b t"], condition: Condition
    ) -> Float[Tensor, "b t k"]:
        """Return the logits of each place in training; here those of :meth:`logits`.

        A subclass may draw other orders of the places, and then returns the logits of each place
        given those before it in the order drawn.

        Args:
            indices: Valid tokens.
            condition: A checked condition; see :meth:`Prior.check_condition`.
        """
        return self.logits(indices, condition)

    @abstractmethod
    def start(self, condition: Condition) -> Any:
        """Return the state of a new batch of sequences, with a cache allocated for all T places.

        Args:
            condition: A checked condition; see :meth:`Prior.check_condition`.
        """

    @abstractmethod
    def next_logits(self, state: Any, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b v"]:
        """Return the logits of place k, exactly as wide as its vocabulary.

        They are float32, or float64 of a prior in float64.

        Args:
            state: What :meth:`start` returned; updated in place. Only tokens that it has not seen
                are computed, so each call must extend the sequence of the call before.
            indices: The first k tokens, 0 <= k < T.
        """

    @abstractmethod
    def keep_rows(self, state: Any, count: int) -> None:
        """Drop all but the first sequences of a batch.

        Args:
            state: What :meth:`start` returned; updated in place.
            count: How many to keep.
        """

    def forward(
        self, indices: Int[Tensor, "b t"], condition: Condition | None = None
    ) -> PriorOutput:
        """Return the mean negative log-likelihood, in nats per token, and its size in bits."""
        condition = self.drop_condition(self.check_condition(condition, indices.shape[0]))
        compute = self.training_logits if self.training else self.logits
        nll = -_token_log_probs(compute(indices, condition), indices).mean()
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
        return _token_log_probs(self.logits(indices, checked), indices).sum(1)

    @functools.cached_property
    def _num_pixels(self) -> int:
        shape = self.tokenizer_record.get("image_shape")
        return math.prod(shape) if shape else 0


def _token_log_probs(logits: Float[Tensor, "b t k"], indices: Tensor) -> Float[Tensor, "b t"]:
    log_probs = at_least_float32(logits).log_softmax(-1)
    return log_probs.gather(2, indices.unsqueeze(2)).squeeze(2)
