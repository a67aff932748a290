"""What the commands share: hints at the next command, tables, and loading models and images."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectok.errors import ConfigError, DataError, InputError, SpectokError
from spectok.messages import note, progress, say
from spectok.places import home, missing

if TYPE_CHECKING:
    from torch import Tensor

    from spectok.tokenizer import ImageTokenizer

BATCH_SIZE = 32


WORDS: ContextVar[list[str]] = ContextVar("words")
"""The words after ``spectok`` of the command that runs."""


def this_command() -> str:
    """Return the command that runs, as it is typed in a shell."""
    return shlex.join(["spectok", *WORDS.get(sys.argv[1:])])


def words_with(changed: Mapping[str, str]) -> list[str]:
    """Return the words of the command that runs, with other values of some of its options."""
    words, kept = list(WORDS.get(sys.argv[1:])), []
    end = words.index("--") if "--" in words else len(words)
    options = iter(words[:end])
    for word in options:
        if word in changed:
            next(options, None)
        elif word.partition("=")[0] not in changed:
            kept.append(word)
    new = [part for option in changed.items() for part in option]
    return ["spectok", *kept, *new, *words[end:]]


def say_next(*commands: list[str]) -> None:
    """Print the commands to run next, quoted for a shell.

    Args:
        commands: Each a list of words; the reader replaces words in capitals.
    """
    for i, command in enumerate(commands):
        say(f"{'next:' if i == 0 else '  or:'} {shlex.join(command)}")


def load_on_device(model: str, subfolder: str | None = None) -> ImageTokenizer:
    """Load a trained tokenizer, in eval mode, on the GPU if there is one; see ``load_trained``."""
    from spectok.loading import load_trained

    tokenizer = load_trained(model, subfolder=subfolder)

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tokenizer.to(device)  # pyright: ignore - diffusers wraps the signature away


def naming(model: str, subfolder: str | None) -> list[str]:
    """Return the words that name a model, and the folder inside it, in a command to run next."""
    return [model] if subfolder is None else [model, "--subfolder", subfolder]


@contextmanager
def naming_image(file: Path | None) -> Iterator[None]:
    """Put the name of an image file before what is wrong with the image; None: of no one file.

    Raises:
        InputError: If the block raises one.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"image {file}: {error}" if file else str(error)) from error


def parse_size(text: str) -> tuple[int, int]:
    """Return the height and width that ``--image-size`` gives: ``256``, or ``256x384``.

    Raises:
        ConfigError: If it gives none.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})(?:[x×]([1-9]\d{0,5}))?", text)
    if found is None:
        raise ConfigError(
            f"--image-size {text} is no size in pixels; give e.g. 256, or 256x384 for height and "
            "width"
        )
    return int(found[1]), int(found[2] or found[1])


def originals(files: list[Path], tokenizer: ImageTokenizer, what: str) -> Iterator[Tensor]:
    """Load images at their own sizes, in the channels of a tokenizer, showing progress.

    Args:
        files: Image files.
        tokenizer: Decides channels and device.
        what: Description of the work, for the progress bar.

    Yields:
        ``(1, C, H, W)`` in [-1, 1].
    """
    from spectok.data.files import load_original

    with progress(what, len(files)) as advance:
        for file in files:
            yield load_original(file, tokenizer.image_shape[0]).to(tokenizer.device)[None]
            advance(1)


def find_images(paths: Iterable[str]) -> list[Path]:
    """Return image files, from files and directories (searched recursively, sorted by name).

    Raises:
        DataError: If a path does not exist or is no file, or a directory holds no images.
    """
    from spectok.data.decode import IMAGE_SUFFIXES
    from spectok.reading import check_regular

    found: list[Path] = []
    for path in map(Path, map(home, paths)):
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            images = sorted(p for p in inside if not p.name.startswith(".") and not p.is_dir())
            if not images:
                raise DataError(f"{path} holds no images; give image files or put some there")
            found += images
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise DataError(f"{missing(path)}; give image files or directories of images")
    for path in found:
        check_regular(path, DataError)  # reading a pipe or a device would not end
    return found


def check_file(path: Path, error: type[SpectokError], remedy: str) -> None:
    """Check that a file is there, before anything is imported to read it.

    Args:
        path: The file.
        error: What to raise.
        remedy: The end of the message.

    Raises:
        SpectokError: Of the class ``error``: if it does not exist, or is no regular file.
    """
    from spectok.reading import check_regular

    if not os.path.lexists(path):
        raise error(f"{missing(path)}; {remedy}")
    check_regular(path, error)


def note_resizing(files: list[Path], image_shape: tuple[int, int, int]) -> None:
    """Say how many images are not of the size that a tokenizer takes."""
    from spectok.data.decode import UnreadableImage, inspect_image

    channels, height, width = image_shape
    resized = 0
    for file in files:
        try:
            resized += inspect_image(file).size != (width, height)
        except UnreadableImage:
            continue  # loading it will fail with the reason
    if resized:
        kind = "grey" if channels == 1 else "colour"
        note(f"{resized} of {len(files)} images resized and cropped to {width}×{height} {kind}")


def batches(files: list[Path], tokenizer: ImageTokenizer, what: str) -> Iterator[Tensor]:
    """Load images in the size and channels of a tokenizer, showing progress.

    Args:
        files: Image files.
        tokenizer: Decides shape and device.
        what: Description of the work, for the progress bar.

    Yields:
        ``(B, C, H, W)`` in [-1, 1].
    """
    import torch

    from spectok.data.files import load_image

    with progress(what, len(files)) as advance:
        for start in range(0, len(files), BATCH_SIZE):
            part = files[start : start + BATCH_SIZE]
            shape, by = tokenizer.image_shape, tokenizer.resize_filter
            images = torch.stack([load_image(file, shape, by) for file in part])
            yield images.to(tokenizer.device)
            advance(len(part))


def print_table(columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print an aligned table; lines are not wrapped when piped."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[escape(str(cell)) for cell in row])
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    console.print(table)


def print_facts(facts: dict[str, str]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        say(f"{name:{width}}  {value}")
