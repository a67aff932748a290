"""What a saved config may ask for, in relation to the weights beside it.

A config costs its author a few bytes and its reader memory and time. Its numbers are checked
first; then the network is built on the meta device, which takes no memory, and building stops at
far more parts than the weights have tensors.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from spectok.errors import CheckpointError

LARGEST_NUMBER = 1 << 20
"""Whole numbers up to this, or up to how many numbers the weights hold, need no trust."""
LONGEST_SEQUENCE = 1 << 17
"""Tokens per image that a prior may have, or as many as its weights hold numbers."""
LONGEST_LIST = 10_000
"""Lists of other things than strings, such as the names of classes, are no longer."""
SPARE_PARTS = 5000
"""Tensors and modules that a network may have beyond ten for each tensor of the weights."""
SPARE_NUMBERS = 1 << 25
"""Numbers that a network may compute, not load, beyond four for each number of the weights."""
REMEDY = "if you trust its author, load it with trust=True"


def check_numbers(config: Mapping[str, Any], stored: int, place: str) -> None:
    """Refuse whole numbers and lists in a config that are far larger than the weights.

    Args:
        config: The options.
        stored: How many numbers the weights hold.
        place: Where it came from, for messages.

    Raises:
        CheckpointError: Names the option.
    """
    limit = max(LARGEST_NUMBER, stored)
    waiting: list[tuple[str, Any]] = [("", dict(config))]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, int) and abs(value) > limit:
            shown = value if abs(value) < 1 << 80 else "a number of many digits"
            raise CheckpointError(
                f"{place} asks for {path} {shown}, over {limit:,} for weights of {stored:,} "
                f"numbers; {REMEDY}"
            )
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{key}".lstrip("."), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple) and not all(isinstance(v, str) for v in value):
            if len(value) > LONGEST_LIST:
                raise CheckpointError(
                    f"{place} asks for {path} with {len(value):,} entries, over {LONGEST_LIST:,}; "
                    f"{REMEDY}"
                )
            waiting += [(path, inner) for inner in value]


def check_layout(num_tokens: int, stored: int, place: str) -> None:
    """Refuse a layout of far more tokens than the weights of a prior hold numbers.

    Args:
        num_tokens: Tokens per image.
        stored: How many numbers the weights hold.
        place: Where it came from, for messages.

    Raises:
        CheckpointError: If there are too many.
    """
    if num_tokens > max(LONGEST_SEQUENCE, stored):
        raise CheckpointError(
            f"{place} asks for token_spec of {num_tokens:,} tokens for weights of {stored:,} "
            f"numbers; {REMEDY}"
        )


@contextlib.contextmanager
def bounded_building(tensors: int, stored: int, place: str) -> Iterator[None]:
    """Stop this thread from building a network with far more parts than the weights have.

    Args:
        tensors: How many tensors the weights hold.
        stored: How many numbers they hold.
        place: Where they came from, for messages.

    Raises:
        CheckpointError: From inside the constructor of the network.
    """
    parts, numbers, thread = 0, 0, threading.get_ident()

    def count(_module: nn.Module, _name: str, part: Any) -> None:
        nonlocal parts, numbers
        if threading.get_ident() != thread:
            return
        parts += 1
        numbers += part.numel() if isinstance(part, Tensor) else 0
        if parts > 10 * tensors + SPARE_PARTS or numbers > 4 * stored + SPARE_NUMBERS:
            raise CheckpointError(
                f"{place} asks for a network far larger than its weights, which hold {tensors:,} "
                f"tensors of {stored:,} numbers; {REMEDY}"
            )

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
        hooks.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
