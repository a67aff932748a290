"""The contract of masked priors: models of an image's hidden tokens, given the visible ones."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.device import constant, send
from spectok.errors import ConfigError, InputError, shown
from spectok_generation.conditions import Condition
from spectok_generation.masked.masking import Masking, ranks
from spectok_generation.priors.base import Prior, PriorOutput
from spectok_generation.priors.codebooks import at_least_float32
from spectok_generation.sampling import image_uniforms
from spectok_generation.sharing import is_count

NUM_DRAWS = 16
"""Random orders by which a bound on the likelihood is estimated."""


class MaskedPrior(Prior):
    """A prior that predicts all hidden tokens at once, each by itself, given the visible ones.

    A subclass defines :meth:`logits`. Tokens that choose the codebooks of others are drawn before
    these; see :class:`Masking`.

    Args:
        token_spec: See :class:`Prior`.
        num_steps: Steps in which images are drawn unless the caller says otherwise.
        choice_temperature: Randomness of the order in which tokens are settled, unless the caller
            says otherwise; see :class:`~spectok_generation.masked.MaskedOptions`.
        label_smoothing: Share of each training target that is spread over all codes of its place.
        **conditions: Further arguments of :class:`Prior`.

    Attributes:
        masking: Which places wait for which.

    Raises:
        ConfigError: If there are fewer steps than codebooks that are chosen one after another.
    """

    likelihood = "bound"

    def __init__(
        self,
        token_spec: dict[str, Any],
        num_steps: int,
        choice_temperature: float,
        label_smoothing: float = 0.0,
        **conditions: Any,
    ):
        super().__init__(token_spec, **conditions)
        self.num_steps, self.choice_temperature = num_steps, choice_temperature
        self.label_smoothing = label_smoothing
        self.masking = Masking(self.token_spec)
        if num_steps < len(self.masking.depths):
            raise ConfigError(f"prior.{too_few_steps(num_steps, self.masking)}")

    @abstractmethod
    def logits(
        self, indices: Int[Tensor, "b t"], visible: Bool[Tensor, "b t"], condition: Condition
    ) -> Float[Tensor, "b t k"]:
        """Return the logits of each place given the visible ones.

        K is the size of the largest vocabulary; entries beyond the vocabulary of a place are -inf.

        Args:
            indices: Tokens; valid where they are visible, arbitrary elsewhere.
            visible: Which of them to see. No visible place has a hidden parent; what is returned
                for places of hidden parents means nothing.
            condition: A checked condition; see :meth:`Prior.check_condition`.
        """

    def forward(
        self, indices: Int[Tensor, "b t"], condition: Condition | None = None
    ) -> PriorOutput:
        """Hide random places, and return the loss of predicting them (Chang et al. 2022, Eq. 1).

        It is in nats per token: a sum over the places that are predicted, weighted so that its
        expectation is the mean over all places (:attr:`Masking.weights`). A mean over the hidden
        places of the batch would depend on how the batch is divided among processes.
        """
        condition = self.drop_condition(self.check_condition(condition, indices.shape[0]))
        visible = send(self.masking.draw(len(indices)), indices.device)
        predicted = ~visible & self.masking.ready(visible)
        log_probs = at_least_float32(self.logits(indices, visible, condition)).log_softmax(-1)
        nll = -_chosen(log_probs, indices)
        bits = (nll.detach() * predicted).sum() / predicted.sum() / math.log(2)
        if self.label_smoothing:
            sizes = constant(self.token_spec.vocab_sizes, indices.device)
            inside = torch.arange(log_probs.shape[2], device=indices.device) < sizes[:, None]
            spread = -torch.where(inside, log_probs, 0.0).sum(-1) / sizes
            nll = torch.lerp(nll, spread, self.label_smoothing)
        weights = constant(self.masking.weights, nll.device)
        loss = (nll * predicted * weights).sum(1).mean()
        return PriorOutput({"masked_nll": loss}, {"masked_bits_per_token": bits})

    @torch.no_grad()
    def log_prob(
        self,
        indices: Int[Tensor, "b t"],
        condition: Condition | None = None,
        num_draws: int = NUM_DRAWS,
    ) -> Float[Tensor, "b"]:
        """Return an estimate of a lower bound on ``log p(indices | condition)``, in nats.

        It is a bound for the model that draws one token at a time, depth after depth and inside a
        depth in a random order: by Jensen's inequality, ``log p(x) >= E_σ Σ_t log p(x_σ(t) |
        x_σ(<t))`` (Uria et al. 2014; Hoogeboom et al. 2022, section 3). The sum over t is estimated
        too, from a few random t. Drawing several tokens at once has no such likelihood.

        Random numbers follow from the tokens of each image, so that equal images get equal numbers
        in any batch. In training mode dropout makes it random.

        Args:
            indices: Valid tokens.
            condition: Class or text of each image, for a prior that takes one.
            num_draws: Random numbers t for each depth, evenly spread.

        Raises:
            TokenError: If indices are outside the spec.
            InputError: If the prior needs a condition and none is given, or there is no draw.
        """
        if not is_count(num_draws):
            raise InputError(f"num_draws {shown(num_draws)} must be a whole number, at least 1")
        self.token_spec.validate(indices)
        self.check_can_omit(condition)
        checked = self.check_condition(condition, len(indices))
        precision = torch.float32 if self.dtype.itemsize < 8 else torch.float64
        if not len(indices):
            return torch.zeros(0, dtype=precision, device=self.device)
        length, num_depths = indices.shape[1], len(self.masking.depths)
        shape = (num_draws, num_depths, length + 1)
        uniforms = torch.stack(
            [image_uniforms(0, _number_of(row), math.prod(shape)).view(shape) for row in indices]
        )
        total = torch.zeros(len(indices), dtype=torch.float64)
        for draw in range(num_draws):
            for depth, places in enumerate(self.masking.depths):
                shift, order = uniforms[:, draw, depth].split([1, length], 1)
                count = 1 + (len(places) * (draw + shift) / num_draws).long()
                hidden = torch.zeros(len(indices), length, dtype=torch.bool)
                hidden[:, places] = ranks(order[:, places]) < count
                known = ~hidden
                for deeper in self.masking.depths[depth + 1 :]:
                    known[:, deeper] = False
                logits = self.logits(indices, send(known, indices.device), checked)
                found = _chosen(at_least_float32(logits).log_softmax(-1), indices).double().cpu()
                total += (found * hidden).sum(1) * len(places) / count.squeeze(1) / num_draws
        return total.to(self.device, precision)


def too_few_steps(num_steps: int, masking: Masking) -> str:
    """Return the message that so few steps cannot draw all depths."""
    needed = len(masking.depths)
    return (
        f"num_steps {num_steps} is less than the {needed} levels of this tokenizer of which each "
        f"chooses the codebooks of the next; give at least {needed}"
    )


def _chosen(log_probs: Float[Tensor, "b t k"], indices: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    return log_probs.gather(2, indices.unsqueeze(2)).squeeze(2)


def _number_of(tokens: Int[Tensor, "t"]) -> int:
    """Return a number that follows from the tokens of an image."""
    return int.from_bytes(hashlib.sha256(tokens.cpu().numpy().tobytes()).digest()[:16], "little")
