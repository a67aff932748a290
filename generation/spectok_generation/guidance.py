"""Classifier-free guidance of autoregressive priors (Ho and Salimans 2022)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError
from spectok_generation.conditions import Condition, join
from spectok_generation.priors.base import AutoregressivePrior, Prior

TEXT_GUIDANCE = 3.0
"""Default guidance scale for images of a text."""
LARGEST_SCALE = 1e6
"""A scale of guidance or noise beyond it overflows, and draws what this one draws."""


class Predictor:
    """Logits of one batch, place by place, with guidance inside an interval.

    Guidance runs two sequences per image, one with the condition and one without. Outside the
    interval only the conditional one runs; at its start the other catches up in a single step.

    Args:
        prior: A trained prior.
        condition: Class or text of each image.
        batch_size: Number of images.
        scale: Guidance scale; 1 is the conditional model itself.
        interval: Fractions of the sequence at which guidance begins and ends.

    Raises:
        InputError: If the condition or the guidance does not fit the prior.
    """

    def __init__(
        self,
        prior: AutoregressivePrior,
        condition: Condition | None,
        batch_size: int,
        *,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        prior.check_can_omit(condition)
        self.prior, self.batch_size, self.scale = prior, batch_size, scale
        self.condition = prior.check_condition(condition, batch_size)
        self.guided = range(0)
        if scale != 1.0:
            check_can_guide(prior, condition, scale)
            length = prior.token_spec.num_tokens
            begin, end = (round(share * length) for share in interval)
            self.guided = range(begin, end)
        self.state: Any = None
        self.is_doubled = False

    def logits(self, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b v"]:
        """Return the logits of place k.

        Args:
            indices: The first k tokens; each call must extend those of the call before.
        """
        self._prepare(indices.shape[1] in self.guided)
        if not self.is_doubled:
            return self.prior.next_logits(self.state, indices)
        logits = self.prior.next_logits(self.state, indices.repeat(2, 1))
        conditional, without = logits.chunk(2)
        return without + self.scale * (conditional - without)

    def _prepare(self, guided: bool) -> None:
        """Bring the state to one sequence per image, or to two."""
        if self.is_doubled and not guided:
            self.prior.keep_rows(self.state, self.batch_size)
        elif guided and not self.is_doubled:
            null = self.prior.null_condition(self.batch_size)
            self.state = self.prior.start(join(self.condition, null))
        elif self.state is None:
            self.state = self.prior.start(self.condition)
        self.is_doubled = guided


def check_can_guide(prior: Prior, condition: Condition | None, scale: float) -> None:
    """Check that a prior can be guided: it has a condition, and was trained without one too.

    Raises:
        InputError: If it cannot; says what to give or how to train.
    """
    if condition is None:
        kind = "a text" if prior.condition_name == "text" else "labels"
        raise InputError(f"guidance {scale} needs {kind} to guide towards")
    prior.check_can_omit(None)


def check_scale(name: str, value: float) -> None:
    """Check that a scale is at least 0 and does not overflow.

    Raises:
        InputError: If it is out of range; names it.
    """
    if not 0 <= value <= LARGEST_SCALE:
        raise InputError(f"{name} {value} must be at least 0 and at most {LARGEST_SCALE:,.0f}")
