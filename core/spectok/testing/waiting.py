"""What makes the host wait for a GPU, where in the code, and in which step of a training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from spectok.testing.pretend import PretendDevice

READS = frozenset(
    (
        "_linalg_check_errors",
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "bincount",
        "equal",
        "histc",
        "is_nonzero",
        "masked_select",
        "multinomial",
        "nonzero",
        "nonzero_numpy",
        "segment_reduce",
        "unique_consecutive",
        "unique_dim",
        "unique_dim_consecutive",
    )
)
"""Operations whose CUDA kernels return a value, a shape or an error that depends on the data."""
_TORCH = str(Path(torch.__file__).parent)
_OURS = (__file__, str(Path(__file__).with_name("pretend.py")))
_INSTALLED = (str(Path(torch.__file__).parents[1]), "<", *_OURS)  # nobody's own code


@dataclass(frozen=True)
class Event:
    """One wait of the host for the device.

    Args:
        kind: ``"read"``: the host reads from the device. ``"copy"``: the host copies to it, from
            memory that is not pinned.
        operation: The operation of torch that does it.
        place: File, line and function.
        step: Value of :attr:`PretendDevice.step` then.
        model: Value of :attr:`PretendDevice.model` then.
    """

    kind: Literal["read", "copy"]
    operation: str
    place: str
    step: int
    model: str

    def __str__(self) -> str:
        return f"{self.kind} by {self.operation} at {self.place}"


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


def replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until a stack is closed; what was inherited is inherited again."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def place() -> str:
    """Name the innermost line that is not a library's; a library's if there is no other."""
    frame: FrameType | None = sys._getframe(1)
    outer, library = None, None
    while frame is not None and outer is None:
        name = frame.f_code.co_filename
        if not name.startswith(_INSTALLED):
            outer = frame
        elif library is None and not name.startswith((_TORCH, "<", *_OURS)):
            library = frame
        frame = frame.f_back
    found = outer or library
    if found is None:
        return "an unknown place"
    file = "/".join(Path(found.f_code.co_filename).parts[-2:])
    return f"{file}:{found.f_lineno} in {found.f_code.co_name}"
