"""Classifier-free guidance of autoregressive priors (Ho and Salimans 2022)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from spectok.errors import InputError
from spectok_generation.conditions import Condition, join
from spectok_generation.priors.base import AutoregressivePrior, Prior

TEXT_GUIDANCE = 3.0
"""Scale for images of a text, where none is given."""


class Predictor:
    """Logits of place after place of one batch, guided where that is wanted.

    Guidance needs each image twice, with its condition and without. Before the interval and after
    it, there is one sequence per image; where it begins, the others catch up in a single step.

    Args:
        prior: A trained prior.
        condition: Class or text of each image.
        batch_size: Number of images.
        scale: Of guidance; 1 is the conditional model itself.
        interval: Shares of the tokens where guidance begins and ends.

    Raises:
        InputError: If condition or guidance do not fit the prior.
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
        """Return logits of place k.

        Args:
            indices: The first k tokens; each call extends those of the last one.
        """
        self._prepare(indices.shape[1] in self.guided)
        if not self.is_doubled:
            return self.prior.next_logits(self.state, indices)
        logits = self.prior.next_logits(self.state, indices.repeat(2, 1))
        conditional, without = logits.chunk(2)
        return without + self.scale * (conditional - without)

    def _prepare(self, guided: bool) -> None:
        """Have a state for one sequence per image, or for two."""
        if self.is_doubled and not guided:
            self.prior.keep_rows(self.state, self.batch_size)
        elif guided and not self.is_doubled:
            null = self.prior.null_condition(self.batch_size)
            self.state = self.prior.start(join(self.condition, null))
        elif self.state is None:
            self.state = self.prior.start(self.condition)
        self.is_doubled = guided


def check_can_guide(prior: Prior, condition: Condition | None, scale: float) -> None:
    """Refuse guidance that has nothing to guide towards, or nothing to guide away from.

    Raises:
        InputError: With the remedy.
    """
    if condition is None:
        kind = "a text" if prior.condition_name == "text" else "labels"
        raise InputError(f"guidance {scale} needs {kind} to be guided towards")
    prior.check_can_omit(None)
