"""Files that appear in a folder all together or not at all.

They are written into a folder ``.partial`` inside the target and then renamed. The file that makes
the target readable, such as ``config.json``, is taken away before the first of several renames and
comes back with the last: whoever reads in between, or after a kill, finds a folder that says it is
incomplete, never one that mixes two models.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from spectok.errors import CheckpointError, ConfigError
from spectok.places import home

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
LOADING_OPTIONS = (
    *HUB_OPTIONS,
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "subfolder",
    "torch_dtype",
    "trust",
    "variant",
)

PARTIAL = ".partial"
REPLACED = "replaced"
"""Folder inside ``.partial`` for what the new files replace."""


@contextlib.contextmanager
def saving(target: str | os.PathLike[str], last: str, own: str = "") -> Iterator[Path]:
    """Provide an empty folder to write into; what is in it then moves into the target.

    Args:
        target: The folder; files in it that are not replaced stay.
        last: Name of the file that makes the target readable.
        own: Regular expression of the names that belong to what is saved: files and folders of
            such a name that are not written again are removed.

    Raises:
        CheckpointError: If anything fails; before the files are moved, the target is untouched.
    """
    folder = resolve(target)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a directory to save into")
    new, temporary = not folder.exists(), folder / PARTIAL
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        give_usual_permissions(temporary, last)
        _install(temporary, folder, last, re.compile(own))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot save to {folder}: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nothing came into it


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return a path as absolute, without ``~``, ``..`` and links.

    Raises:
        CheckpointError: If it cannot be a path, such as one with a NUL character.
    """
    try:
        return Path(home(path)).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise CheckpointError(f"{os.fspath(path)!r} is no path: {first_line(error)}") from error


def was_cut_short(folder: Path) -> bool:
    """Return whether a save into a folder ended before its last file."""
    return (folder / PARTIAL).is_dir()


def give_usual_permissions(folder: Path, usual: str) -> None:
    """Give all files the permissions of one; safetensors lets only the owner read its files."""
    mode = (folder / usual).stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _install(temporary: Path, target: Path, last: str, own: re.Pattern[str]) -> None:
    new = sorted(path.name for path in temporary.iterdir() if path.name != last)
    old = sorted(
        path.name
        for path in target.iterdir()
        if path.name not in (*new, last) and own.fullmatch(path.name)
    )
    replaced = temporary / REPLACED
    replaced.mkdir()
    if len(new) + len(old) > 1 or not _are_equal(temporary / last, target / last):
        (target / last).unlink(missing_ok=True)
    for name in [*old, *(name for name in new if (target / name).is_dir())]:
        os.replace(target / name, replaced / name)
    for name in [*new, last]:
        os.replace(temporary / name, target / name)


def _are_equal(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def check_loading_options(options: Iterable[str], known: Iterable[str] = LOADING_OPTIONS) -> None:
    """Refuse options that diffusers would ignore, or let override the saved config.

    Raises:
        ConfigError: Names the option, and those that loading takes.
    """
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{name} cannot be set on a trained model: its config.json decides; loading takes "
                f"{', '.join(LOADING_OPTIONS)}"
            )
