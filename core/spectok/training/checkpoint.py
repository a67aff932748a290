"""Checkpoints: all of the training state or nothing, and never a pickle that runs code.

    checkpoints/step-00001000/
        model.safetensors       weights and buffers; one such file per further phase
        state.pt                optimisers, weight average, loss scaler: tensors and numbers only
        manifest.json           step, recipe, versions, and size and SHA-256 of every file

A checkpoint is written to a temporary directory next to its own, flushed to disk and renamed, so it
exists completely or not at all; only then are older ones removed. A run goes on from the newest
checkpoint whose files are those that its manifest lists, size and hash; a newer one that is damaged
is named and put aside.

Random numbers, the order of the data and learning rates are functions of the seed and the step, so
the step stands for all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from spectok.errors import CheckpointError, TrainingError
from spectok.reading import check_regular, read_json
from spectok.recipes.files import MANIFEST
from spectok.saving import give_usual_permissions
from spectok.weights import reading_reason
from spectok.writing import flush

FORMAT = 2
STATE = "state.pt"
CHECKSUM = "checksum"
"""Entry of a manifest: a hash of the others, but for the recipe, which is compared by itself."""
PARTIAL, DAMAGED = ".partial", ".damaged"


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
        files = sorted(temporary.iterdir())
        content = {"format": FORMAT, "step": step, **manifest}
        content["files"] = {path.name: path.stat().st_size for path in files}
        content["sha256"] = {path.name: hash_file(path) for path in files}
        content[CHECKSUM] = _checksum(content)
        (temporary / MANIFEST).write_text(json.dumps(content, indent=1))
        give_usual_permissions(temporary, MANIFEST)
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        if target.exists():  # only an incomplete one: training continued from a complete one
            shutil.rmtree(target)
        os.replace(temporary, target)
        flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_cannot_save(folder, target, error)) from error
    remove_older(folder, step, keep_last - 1)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder whose files have their sizes, oldest first."""
    return [path for path in all_checkpoints(folder) if not what_is_missing(path)]


def choose_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint that is whole, and what is wrong with each newer one.

    Every byte of it is read.

    Raises:
        CheckpointError: If there are checkpoints, but all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(all_checkpoints(folder)):
        problem = what_is_missing(path) or what_is_damaged(path)
        if not problem:
            return path, damaged
        damaged[path] = problem
    if damaged:
        path, problem = next(iter(damaged.items()))
        raise CheckpointError(
            f"cannot resume from {path}: {problem}; there is no other checkpoint: begin again in "
            f"another output folder"
        )
    return None, {}


def put_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it neither counts nor is in the way."""
    aside = path.with_name(path.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)


def remove_older(folder: Path, step: int, keep: int) -> None:
    """Remove the checkpoints before a step, except the newest complete ones.

    Each is renamed first: a kill in the middle leaves no half of a checkpoint under its name.

    Args:
        folder: Folder of the checkpoints.
        step: A step whose checkpoint is complete.
        keep: How many before it to keep.
    """
    complete = [path for path in list_checkpoints(folder) if step_of(path) < step]
    kept = complete[-keep:] if keep else []
    for path in all_checkpoints(folder):
        if step_of(path) < step and path not in kept:
            leaving = path.with_name(path.name + PARTIAL)
            with contextlib.suppress(OSError):
                os.replace(path, leaving)
            shutil.rmtree(leaving, ignore_errors=True)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def all_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, damaged ones too, oldest first."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and p.is_dir()]
    return sorted(found, key=step_of)


def what_is_missing(path: Path) -> str:
    """Return which file of a checkpoint is missing or of another size; empty if none is."""
    try:
        for name, size in read_json(path / MANIFEST, CheckpointError)["files"].items():
            check_regular(path / name, CheckpointError)
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except CheckpointError as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return ""


def what_is_damaged(path: Path) -> str:
    """Return which file of a checkpoint is not as it was written; empty if all are.

    Checkpoints of earlier versions have no hashes: of those, nothing is known.
    """
    manifest = read_json(path / MANIFEST, CheckpointError)
    if manifest.pop(CHECKSUM, None) not in (None, _checksum(manifest)):
        return f"{MANIFEST} is damaged"
    for name, expected in manifest.get("sha256", {}).items():
        if hash_file(path / name) != expected:
            return f"{name} is damaged (its hash differs)"
    return ""


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: manifest[key] for key in sorted(manifest.keys() - {CHECKSUM, "recipe"})}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: If it is damaged, or this version does not read the checkpoint's format.
    """
    manifest = read_json(path / MANIFEST, CheckpointError)
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
        raise CheckpointError(
            f"cannot resume from {path}: {reading_reason(error)}; delete that checkpoint to resume "
            f"from the one before"
        ) from error


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


def _cannot_save(folder: Path, target: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    kept = list_checkpoints(folder)
    safe = f"{kept[-1].name} is intact: resume from it" if kept else "there is no earlier one"
    return f"cannot write checkpoint {target}: {reason}; free some space. {safe}"
