"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spectok.quantizers import Quantizer


class WeightEMA:
    """Running average of the parameters, in float32.

    The decay rises to its final value as ``(1 + n) / (10 + n)``, so the random start is soon
    forgotten. Buffers are not averaged: the average goes with the model's current buffers, which
    include the codebooks that quantizers average themselves. Codes that a quantizer edits by hand
    are copied as they are, because the mean of a code's old and new position is neither.

    Args:
        model: Model to follow.
        decay: Final decay per optimiser step, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.num_updates = decay, 0
        self.parameters = dict(model.named_parameters())
        self.shadow = {
            name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()
        }
        self._codes = {
            name: p
            for prefix, module in model.named_modules()
            if isinstance(module, Quantizer)
            for name, p in module.named_parameters(prefix)
        }

    @contextmanager
    def following_edits(self) -> Iterator[None]:
        """Watch the codebooks while they are edited, and copy every code that was."""
        before = {name: p.detach().clone() for name, p in self._codes.items()}
        yield
        for name, old in before.items():
            new = self._codes[name].detach()
            shadow = self.shadow[name]
            shadow.copy_(torch.where(new != old, new.to(shadow.dtype), shadow))

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the current weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in self.parameters.items():
            self.shadow[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights, and afterwards its own back, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._set(self.shadow)
        try:
            yield
        finally:
            self._set(own)

    def copy_to_model(self) -> None:
        """Give the model the averaged weights for good."""
        self._set(self.shadow)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """Return the average and the number of updates."""
        return {"num_updates": self.num_updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore the state of :meth:`state_dict`.

        Raises:
            ValueError: If it was made from a model with other parameters.
        """
        shadow = state["shadow"]
        if not isinstance(shadow, dict) or shadow.keys() != self.shadow.keys():
            raise ValueError("the weight average belongs to a model with other parameters")
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.num_updates = int(state["num_updates"])  # type: ignore[call-overload]
