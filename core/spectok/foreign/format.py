"""What a plugin registers to read other projects' checkpoints, and what helps it to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from spectok.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from spectok.tokenizer import ImageTokenizer

SHOWN = 5


class CheckpointFormat(Protocol):
    """Builds a tokenizer from the tensors of another project's checkpoint."""

    def __call__(self, tensors: Mapping[str, Tensor], image_size: int) -> ImageTokenizer:
        """Return the tokenizer, with these weights.

        Args:
            tensors: Names, as in the checkpoint, and values.
            image_size: Height and width of the images it was trained on, in pixels.

        Raises:
            CheckpointError: If tensors are missing, left over or of the wrong shape.
        """
        ...


def take_tensors(
    wanted: Mapping[str, tuple[int, ...]],
    names: Mapping[str, list[str]],
    tensors: Mapping[str, Tensor],
    ignored: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Return tensors by our names; several of theirs are joined along the first axis.

    Args:
        wanted: Our names and shapes.
        names: Our names -> theirs, for all that are wanted.
        tensors: Theirs.
        ignored: Beginnings of their names that are no part of the tokenizer.

    Raises:
        CheckpointError: Names tensors that are missing, left over, or of the wrong shape or type.
    """
    import torch

    used = {name for theirs in names.values() for name in theirs}
    missing = [name for name in sorted(used) if name not in tensors]
    surplus = [n for n in sorted(tensors) if n not in used and not n.startswith(ignored)]
    problems = []
    if missing:
        problems.append(f"missing: {_some(missing)}")
    if surplus:
        problems.append(f"of no use: {_some(surplus)}")
    if problems:
        raise CheckpointError(f"these tensors are not that network's; {'; '.join(problems)}")
    found = {}
    for ours, theirs in names.items():
        parts = [tensors[name] for name in theirs]
        for name, part in zip(theirs, parts):
            if not part.is_floating_point():
                raise CheckpointError(f"{name} holds {part.dtype}, and no floating-point numbers")
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if tuple(value.shape) != tuple(wanted[ours]):
            raise CheckpointError(
                f"{' + '.join(theirs)} has shape {tuple(value.shape)} where the network has "
                f"{tuple(wanted[ours])}"
            )
        found[ours] = value.float()
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
