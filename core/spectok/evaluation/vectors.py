"""What feature vectors must be before they are compared."""

from __future__ import annotations

from torch import Tensor

from spectok.errors import InputError


def check_vectors(features: Tensor, dim: int | None = None) -> None:
    """Check that features are a set of finite vectors.

    Args:
        features: One vector per image, (N, D).
        dim: Required length D. None: any.

    Raises:
        InputError: If they are not (N, D), or not finite.
    """
    if features.ndim != 2 or dim not in (None, features.shape[1]):
        raise InputError(
            f"features of shape {tuple(features.shape)} are not (N, {dim or 'D'}); give one vector "
            f"per image"
        )
    if not features.isfinite().all():
        raise InputError("features are not all finite; check the images they were taken from")


def check_lengths(first: int, second: int) -> None:
    """Check that the vectors of two sets are equally long.

    Raises:
        InputError: If not.
    """
    if first != second:
        raise InputError(
            f"features of {first} and of {second} numbers cannot be compared; take both from one "
            f"network"
        )


def check_comparable(real: Tensor, fake: Tensor) -> None:
    """Check that two sets are finite vectors of one length.

    Raises:
        InputError: If not.
    """
    for features in (real, fake):
        check_vectors(features)
    check_lengths(real.shape[1], fake.shape[1])
