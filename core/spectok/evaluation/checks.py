"""What was claimed and what was found, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectok.cards.claims import SCALARS

LEVELS, POSITIONS = "levels", "positions"
ABSOLUTE = {
    "psnr": 0.01,
    "ssim": 5e-4,
    "lpips": 5e-4,
    "codebook_usage": 0.005,
    "distinct_usage": 0.005,
}
RELATIVE, RELATIVE_OF_DISTANCES = 0.005, 0.02
SHARES, KERNEL_DISTANCES = 0.01, 1e-3  # absolute; a kernel distance may be about 0
OF_POSITIONS = 0.1  # relative: a position has one token per image
EXACT = ("bits_per_image", "parameters", "num_images")
"""What may differ where the same weights meet the same images. Only the last digits of a network's
sums depend on the machine; where they decide between two codes, a few tokens differ."""


@dataclass(frozen=True)
class Check:
    """One thing that was claimed, and what was found.

    Args:
        name: What.
        claimed: As claimed.
        found: As measured.
        tolerance: How far numbers may lie apart. None: both must be equal.
    """

    name: str
    claimed: Any
    found: Any
    tolerance: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus claimed, for numbers."""
        if self.tolerance is None or self.found is None:
            return None
        return self.found - self.claimed

    @property
    def passed(self) -> bool:
        """Whether the claim holds."""
        if self.difference is None:
            return self.claimed == self.found
        return abs(self.difference) <= (self.tolerance or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the check in plain JSON types."""
        return {**vars(self), "difference": self.difference, "passed": self.passed}


def tolerance_of(name: str, claimed: float | None, exact: Sequence[str] = EXACT) -> float | None:
    """Return how far a number may lie from the claimed one; None: not at all."""
    if name in exact or claimed is None:
        return None
    if name.startswith(f"{LEVELS}."):
        if POSITIONS in name.split("."):
            return OF_POSITIONS * max(abs(claimed), OF_POSITIONS)
        name = name.rpartition(".")[2]
    if name in ABSOLUTE:
        return ABSOLUTE[name]
    if name.endswith(("_precision", "_recall")):
        return SHARES
    if name.endswith(("kid", "kid_std")):
        return max(KERNEL_DISTANCES, RELATIVE_OF_DISTANCES * abs(claimed))
    is_distance = name == "rfid" or name.endswith("frechet")
    return (RELATIVE_OF_DISTANCES if is_distance else RELATIVE) * abs(claimed)


def all_numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result says by name: its metrics, and what it says of levels and positions.

    Args:
        result: What :func:`spectok.evaluation.evaluate` returned, or was read from a file.

    Returns:
        Name -> value, which in a file may be anything; ``levels.0.positions.perplexity.5``.
    """
    scalars = {name: result[name] for name in SCALARS if name in result}
    return dict(_leaves(result.get("metrics") or {}, "")) | {
        **scalars,
        **dict(_leaves(result.get(LEVELS) or [], f"{LEVELS}.")),
    }


def worst_of_lists(checks: Iterable[Check]) -> list[Check]:
    """Return the checks, of each list of numbers the one that is farthest off alone."""
    worst: dict[str, Check] = {}
    for check in checks:
        whole, _, last = check.name.rpartition(".")
        name = whole if last.isdecimal() else check.name
        if name not in worst or _excess(check) > _excess(worst[name]):
            worst[name] = check
    return list(worst.values())


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping | list):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), tree


def _excess(check: Check) -> float:
    """Return how far off a number is, in tolerances."""
    if check.passed:
        return abs(check.difference or 0.0) / (check.tolerance or 1.0)
    return math.inf
