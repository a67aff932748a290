"""The files of a model that is put into the package of trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.utils.constants import CONFIG_NAME
from PIL import Image
from safetensors.torch import load_file, save_file

from spectok.cards.file import read_header, replace_key, seal
from spectok.errors import CheckpointError
from spectok.recipes.files import RUN_RECIPE
from spectok.recipes.yaml12 import read_yaml
from spectok.saving import give_usual_permissions
from spectok.training.log import read_log
from spectok.weights import find_weights

MEASURED = (300, None)
"""On how many test images a card claims numbers; the last is all of them."""


def halve(folder: Path) -> None:
    """Store the floats of a saved model as float16.

    Raises:
        CheckpointError: If one of them is too large for it.
    """
    (path,) = find_weights(folder)
    halve_file(path)
    give_usual_permissions(folder, CONFIG_NAME)


def halve_file(path: Path) -> None:
    """Store the floats of a file of tensors as float16.

    Raises:
        CheckpointError: If one of them is too large for it.
    """
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.half()
            if not tensors[name].isfinite().all():
                raise CheckpointError(f"{name} has numbers that are too large for float16")
    save_file(tensors, path, {"format": "pt"})


def log_of(model: Path) -> list[dict[str, Any]]:
    """Return the log of the run that holds a model."""
    return read_log(model.parent / "log.jsonl")


def recipe_section(model: Path) -> dict[str, Any]:
    """Return the recipe of a run as it was, today's defaults not filled in, without its places."""
    sections = read_yaml(model.parent / RUN_RECIPE)
    sections["data"].pop("path", None)
    return {name: section for name, section in sections.items() if name != "output"}


def give_license(card: Path, name: str) -> None:
    """Write the licence of the weights into a card."""
    text = replace_key(card.read_text(encoding="utf-8"), "license", name)
    assert read_header(text, str(card))["license"] == name
    card.write_text(seal(text), encoding="utf-8")


def shrink(picture: Path) -> None:
    """Store a picture, if there is one, with 64 colours: a third of the bytes."""
    if picture.exists():
        with Image.open(picture) as image:
            image.convert("RGB").quantize(64).save(picture, optimize=True)
