"""Checkpoints of other projects, read into models of our own that can be trained further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spectok.errors import CheckpointError, InputError
from spectok.plugins import registry
from spectok.weights import check_finite, named_tensors, read_file

if TYPE_CHECKING:
    from torch import Tensor

    from spectok.foreign.format import CheckpointFormat
    from spectok.tokenizer import ImageTokenizer

HOLDERS = ("ema", "state_dict", "model")
"""Keys under which training programs save weights, the preferred first: averages, then weights."""


def import_checkpoint(path: Path, format: str, image_size: int = 256) -> ImageTokenizer:
    """Load another project's checkpoint into a tokenizer of ours.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save`` that holds tensors alone.
        format: A registered format, such as ``"taming"``.
        image_size: Height and width of the images it was trained on, in pixels.

    Returns:
        The tokenizer, in eval mode.

    Raises:
        UnknownNameError: If no plugin registers the format.
        CheckpointError: If the file cannot be read safely, or does not hold that network.
        InputError: If the network does not take such images.
    """
    convert: CheckpointFormat = registry.get_registered("checkpoint_format", format)
    if image_size < 1:
        raise InputError(f"image_size {image_size} must be at least 1")
    tokenizer = convert(read_tensors(path), image_size)
    check_finite(tokenizer, str(path))
    return tokenizer.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, without running any code that it holds.

    Of a file with several sets of weights, averaged ones come first.

    Raises:
        CheckpointError: Says what is wrong.
    """
    remedy = (
        "Where you trust its source, load it there and save its tensors alone, best as .safetensors"
    )
    found = read_file(path, remedy)
    for holder in HOLDERS:
        if isinstance(found, Mapping) and isinstance(found.get(holder), Mapping):
            found = found[holder]
            break
    tensors = named_tensors(found)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name, neither at its top nor under "
            f"{', '.join(map(repr, HOLDERS))}"
        )
    return tensors
