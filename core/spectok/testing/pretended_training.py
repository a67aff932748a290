"""Training on a GPU that is not there; see :mod:`spectok.testing.pretend`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from spectok.testing.pretend import PretendDevice
from spectok.testing.waiting import replace


@contextmanager
def training_on(gpu: PretendDevice) -> Iterator[None]:
    """Let :func:`spectok.training.fit` train on the pretended device, and count its steps.

    While a step is taken, :attr:`PretendDevice.step` is its number, counted from 1, and
    :attr:`PretendDevice.model` the name of the class that is trained; otherwise the step is 0.

    Args:
        gpu: The device, inside its context.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from spectok.training import loop

    train_on_batch = loop.train_on_batch

    def counted(state: Any, batch: Any, step: int) -> None:
        gpu.step, gpu.model = step + 1, type(state.model).__name__
        try:
            train_on_batch(state, batch, step)
        finally:
            gpu.step = 0

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    with ExitStack() as stack:
        forget()
        stack.callback(forget)
        replace(stack, loop, "train_on_batch", counted)
        replace(stack, PartialState, "set_device", lambda s: setattr(s, "device", gpu.device))
        replace(stack, AcceleratorState, "_check_initialized", lambda *_, **__: None)
        yield
