"""Checkpoints: all of the training state or nothing, and never a pickle that runs code.

    checkpoints/step-00001000/
        model.safetensors       weights and buffers; one such file per further phase
        state.pt                optimisers, weight average, loss scaler: tensors and numbers only
        manifest.json           step, recipe, versions, and the size of every file

A checkpoint is written to a temporary directory next to its own, flushed to disk and renamed, so it
exists completely or not at all; only then are older ones removed. A checkpoint whose file sizes do
not match its manifest is ignored.

Random numbers, the order of the data and learning rates are functions of the seed and the step, so
the step stands for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from spectok.errors import CheckpointError, ConfigError, TrainingError
from spectok.training.train_config import FREE_TO_CHANGE

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.pt"
PARTIAL = ".partial"
FREE_SETTINGS = {
    "output",
    "losses.perceptual.weights",  # a path on this machine
    *(f"train.{name}" for name in FREE_TO_CHANGE),
}


class Stateful(Protocol):
    """Anything with a state of tensors, numbers and containers of them."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore a state."""


@dataclass
class Parts:
    """The objects that make up the training state.

    Args:
        models: Modules by name, one file each.
        others: Optimisers, weight average and loss scaler by name.
    """

    models: dict[str, nn.Module]
    others: dict[str, Stateful] = field(default_factory=dict)


def save_checkpoint(
    target: Path, step: int, parts: Parts, manifest: Mapping[str, Any], keep_last: int
) -> None:
    """Write a checkpoint, then remove all but the newest ``keep_last`` beside it.

    Raises:
        CheckpointError: If it cannot be written; what was there before is untouched.
        TrainingError: If the state is not finite: such a checkpoint would be useless.
    """
    check_finite(parts)
    folder, temporary = target.parent, target.with_name(target.name + PARTIAL)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, model in parts.models.items():
            save_model(model, str(temporary / f"{name}.safetensors"))
        with (temporary / STATE).open("wb") as file:
            torch.save({name: part.state_dict() for name, part in parts.others.items()}, file)
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        content = {"format": FORMAT, "step": step, **manifest, "files": sizes}
        (temporary / MANIFEST).write_text(json.dumps(content, indent=1))
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        if target.exists():  # only an incomplete one: training continued from a complete one
            shutil.rmtree(target)
        os.replace(temporary, target)
        flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_cannot_save(folder, target, error)) from error
    for old in list_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    found = sorted(path for path in folder.glob("step-*") if path.suffix != PARTIAL)
    return [path for path in found if is_complete(path)]


def is_complete(path: Path) -> bool:
    """Return whether every file that a checkpoint's manifest lists is there in full."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: If this version does not read the checkpoint's format.
    """
    manifest = json.loads((path / MANIFEST).read_text())
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {manifest.get('format')!r}; this version of spectok "
            f"reads format {FORMAT}: resume with the version that wrote it"
        )
    return manifest


def load_checkpoint(path: Path, parts: Parts) -> None:
    """Restore a checkpoint's state into objects like those it was taken from.

    Raises:
        CheckpointError: If it cannot be read or does not fit the objects.
    """
    try:
        for name, model in parts.models.items():
            load_model(model, path / f"{name}.safetensors", strict=True)
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        for name, part in parts.others.items():
            part.load_state_dict(state[name])
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"cannot resume from {path}: {lines[0]}; delete that checkpoint to resume from the "
            f"one before"
        ) from error


def check_same_run(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to resume with settings that would make it a different run.

    A setting that is None equals one that is missing, so a run that was started before a setting
    existed still resumes.

    Args:
        recorded: The recipe in the checkpoint.
        current: The recipe of the run that wants to resume.

    Raises:
        ConfigError: One line per setting that differs.
    """
    old, new = flatten(json.loads(json.dumps(recorded))), flatten(json.loads(json.dumps(current)))
    differing = [
        f"{name}: the run to resume has {old.get(name)!r}, not {new.get(name)!r}; set it back, or "
        f"start a new run in another output folder"
        for name in sorted(old.keys() | new.keys())
        if name not in FREE_SETTINGS and old.get(name) != new.get(name)
    ]
    if differing:
        raise ConfigError(*differing)


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        flat |= flatten(value, name) if isinstance(value, Mapping) and value else {name: value}
    return flat


def check_finite(parts: Parts) -> None:
    """Check every weight and every optimiser moment, with one synchronisation per device.

    Raises:
        TrainingError: Names the first tensor that is not finite.
    """
    tensors = {name: p for model in parts.models.values() for name, p in model.named_parameters()}
    for name, part in parts.others.items():
        tensors |= dict(_tensors(part.state_dict(), name))
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    for names in by_device.values():
        finite = torch.stack([tensors[name].isfinite().all() for name in names])
        if not bool(finite.all()):
            first = names[int(finite.logical_not().nonzero()[0])]
            raise TrainingError(
                f"{first} is not finite, so no checkpoint is written; resume from the last one "
                f"with a lower train.learning_rate in a new run, or set train.max_grad_norm"
            )


def _tensors(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{path}.{key}")


def flush(path: Path) -> None:
    """Make sure a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_save(folder: Path, target: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    kept = list_checkpoints(folder)
    safe = f"{kept[-1].name} is intact: resume from it" if kept else "there is no earlier one"
    return f"cannot write checkpoint {target}: {reason}; free some space. {safe}"
