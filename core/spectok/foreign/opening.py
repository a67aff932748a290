"""Find the folder of a saved model, in a pipeline too, and what nobody can load in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from spectok.errors import CheckpointError
from spectok.foreign.claims import describe_unclaimed, foreign_models, saved_by, tokenizers
from spectok.foreign.folder import PIPELINE, ForeignFolder
from spectok.foreign.model import ForeignModel
from spectok.plugins import registry
from spectok.reading import read_json
from spectok.saved_config import CONFIG_NAME, read_config

SHOWN_PARTS = 12


def open_folder(root: Path, subfolder: str | None, place: str) -> ForeignFolder:
    """Find a saved model, in a subfolder where one is given or ``model_index.json`` names it.

    Args:
        root: A local folder.
        subfolder: Folder inside it. None: the one that ``model_index.json`` says.
        place: What was asked for, for messages.

    Raises:
        CheckpointError: If there is no such folder, or the model to load is not clear.
    """
    check_inside(subfolder or "", place)
    inside = subfolder or (guess_subfolder(root, place) if subfolder is None else "")
    folder = root / inside
    if not folder.is_dir():
        parts = sorted(path.name for path in root.iterdir() if path.is_dir())[:SHOWN_PARTS]
        raise CheckpointError(
            f"{place} has no folder {inside}; its folders: {', '.join(parts) or 'none'}"
        )
    around = root if inside else _pipeline_around(folder)
    place = f"{place}/{inside}" if inside else place
    found = ForeignFolder(folder, around, place, {})
    if not os.path.lexists(folder / CONFIG_NAME):
        return found
    return replace(found, config=read_config(folder))


def check_inside(subfolder: str, place: str) -> None:
    """Refuse a subfolder that leads out of its folder.

    Raises:
        CheckpointError: If it does.
    """
    inside = PurePath(subfolder)
    if inside.is_absolute() or ".." in inside.parts:
        raise CheckpointError(f"subfolder {subfolder!r} is not inside {place}")


def guess_subfolder(root: Path, place: str) -> str:
    """Return the part of a pipeline that is a tokenizer; an empty string for other folders.

    Args:
        root: A local folder.
        place: Its name for messages.

    Raises:
        CheckpointError: If a pipeline has no such part, or several.
    """
    if os.path.lexists(root / CONFIG_NAME) or not os.path.lexists(root / PIPELINE):
        return ""
    index = read_json(root / PIPELINE, CheckpointError)
    parts = {
        name: entry[1]
        for name, entry in (index.items() if isinstance(index, dict) else ())
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    found = [name for name, kind in parts.items() if is_tokenizer(kind)]
    if len(found) > 1:
        raise CheckpointError(
            f"{place} is a pipeline with several tokenizers: {', '.join(found)}; choose one with "
            f"subfolder= (--subfolder of commands), or give that folder"
        )
    if not found:
        for part, use in _parts_of_tokenizers(parts):
            raise CheckpointError(use.refusal(f"{place}/{part}"))
        listed = ", ".join(f"{name} ({kind})" for name, kind in list(parts.items())[:SHOWN_PARTS])
        raise CheckpointError(
            f"{place} is a pipeline without a tokenizer of images: it has {listed or 'no parts'}; "
            f"plugins load {', '.join(sorted(kind.summary for kind in tokenizers()))}"
        )
    check_inside(found[0], place)
    return found[0]


def is_tokenizer(class_name: str) -> bool:
    """Return whether an installed plugin provides, or loads, a class of this name."""
    own = registry.class_names("tokenizer").values()
    foreign = (name for kind in tokenizers() for name in kind.class_names)
    return class_name in {*own, *foreign} or saved_by(class_name) is not None


def _parts_of_tokenizers(parts: Mapping[str, str]) -> Iterator[tuple[str, ForeignModel]]:
    """Yield the parts of a pipeline of which a tokenizer can be made."""
    for name, kind in parts.items():
        for foreign in foreign_models().values():
            if foreign.instead and kind in foreign.class_names:
                yield name, foreign


def unclaimed(saved: ForeignFolder) -> CheckpointError:
    """Return the error for a model that nothing claims."""
    if not saved.config:
        read_config(saved.folder)  # says what is missing
    return CheckpointError(f"{saved.place} {describe_unclaimed(saved.config)}")


def _pipeline_around(folder: Path) -> Path:
    """Return the folder of the pipeline that a folder is a part of; else the folder itself."""
    around = folder.resolve().parent
    if not os.path.isfile(around / PIPELINE):
        return folder
    index = read_json(around / PIPELINE, CheckpointError)
    return around if isinstance(index, dict) and folder.resolve().name in index else folder
