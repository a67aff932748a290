"""Image sizes other than the one a tokenizer was built for: one set of weights, another layout."""

from __future__ import annotations

import copy
import functools
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from spectok.errors import InputError, shown

ImageSize = int | tuple[int, int]
"""Height and width in pixels; one number for a square."""


def as_size(given: Any) -> tuple[int, int]:
    """Return an image size as height and width.

    Args:
        given: One positive integer, or two.

    Raises:
        InputError: If it is anything else.
    """
    sides = (given, given) if isinstance(given, int) else given
    fits = isinstance(sides, tuple | list) and len(sides) == 2
    if not fits or not all(type(side) is int and side >= 1 for side in sides):
        raise InputError(
            f"image_size {shown(given)} is not a number of pixels or (height, width), such as 256 "
            "or (256, 384)"
        )
    return sides[0], sides[1]


def size_of(images: Tensor) -> tuple[int, int]:
    """Return height and width of images or of one image, channels first."""
    return images.shape[-2], images.shape[-1]


def times(size: tuple[int, int]) -> str:
    """Return height and width as messages show them."""
    return f"{size[0]}×{size[1]}"


def rescaled(module: nn.Module, rows: Fraction, columns: Fraction) -> Any:
    """Return a module laid out for images of another size, with the same weights.

    The module and those of its parts that have a method ``rescale(rows, columns)`` are copied
    without their weights, and the method is called on the copies; other parts are shared.

    Args:
        module: A tokenizer or a part of one; left as it is.
        rows: New height of the images / height they had.
        columns: The same of the width.
    """
    twin: Any = copy.copy(module)  # parameters and buffers stay in the dictionaries of both
    for kind in type(module).__mro__:
        for name, value in vars(kind).items():
            if isinstance(value, functools.cached_property):
                twin.__dict__.pop(name, None)
    twin._modules = {
        name: rescaled(child, rows, columns) if child is not None and _has_layout(child) else child
        for name, child in module._modules.items()
    }
    if hasattr(type(module), "rescale"):
        twin.rescale(rows, columns)
    return twin


def _has_layout(module: nn.Module) -> bool:
    return any(hasattr(type(part), "rescale") for part in module.modules())


def scaled(length: int, factor: Fraction) -> int:
    """Return a length of a grid at another image size.

    Raises:
        InputError: If it is not whole.
    """
    result = length * factor
    if result.denominator != 1 or result < 1:
        raise InputError(f"a grid of length {length} is not whole at {factor} times the size")
    return int(result)
