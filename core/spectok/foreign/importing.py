"""Checkpoints of other projects, read into models of our own that can be trained further."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectok.errors import CheckpointError, InputError
from spectok.plugins import registry
from spectok.reading import check_regular
from spectok.weights import check_finite, reading_reason

if TYPE_CHECKING:
    from torch import Tensor

    from spectok.foreign.format import CheckpointFormat
    from spectok.tokenizer import ImageTokenizer

HOLDERS = ("ema", "state_dict", "model")
"""Keys under which training programs save weights, the preferred first: averages, then weights."""
MAX_INFLATION = 4
"""How many times its packed size a file may claim to be. PyTorch packs without compression."""


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
    import torch
    from safetensors.torch import load_file

    check_regular(path, CheckpointError)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            _check_inflation(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # every reader fails in its own ways
        raise CheckpointError(
            f"cannot read {path}: {reading_reason(error)}. Where you trust its source, load it "
            f"there and save its tensors alone, best as .safetensors"
        ) from error
    return _tensors_of(found, path)


def _tensors_of(found: Any, path: Path) -> dict[str, Tensor]:
    import torch

    for holder in HOLDERS:
        if isinstance(found, Mapping) and isinstance(found.get(holder), Mapping):
            found = found[holder]
            break
    items = found.items() if isinstance(found, Mapping) else ()
    tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name, neither at its top nor under "
            f"{', '.join(map(repr, HOLDERS))}"
        )
    return tensors


def _check_inflation(path: Path) -> None:
    """Refuse an archive that claims to be far larger than the file: PyTorch would believe it."""
    if not zipfile.is_zipfile(path):
        return  # the older format: a pickle, whose tensors must be in the file
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MAX_INFLATION * size:
        raise CheckpointError(f"{path} claims {claimed:,} bytes in a file of {size:,}")
