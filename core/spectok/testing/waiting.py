"""What makes the host wait for a GPU, and where in the code."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

READS = frozenset(
    (
        "_ctc_loss",
        "_linalg_check_errors",
        "_linalg_eigh",
        "_linalg_svd",
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "allclose",
        "bincount",
        "embedding_renorm_",
        "equal",
        "histc",
        "is_nonzero",
        "linalg_eig",
        "linalg_lstsq",
        "linalg_matrix_exp",
        "linalg_pinv",
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


def reads(operation: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Return whether the host reads from the device in an operation with these arguments."""
    if operation == "repeat_interleave":
        return options.get("output_size") is None
    if operation == "normal":  # none of the standard deviations may be negative
        return len(args) > 1 and isinstance(args[1], Tensor)
    return operation in READS or bool(options.get("check_errors"))


def looks_on_cpu(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Return whether an operation looks at the values of its tensors only if they are on a CPU."""
    if function is not F.one_hot:
        return False
    return (args[1] if len(args) > 1 else options.get("num_classes", -1)) >= 0


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results, also in lists; torch's own way is slower."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


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
