"""Turn a data set into a token cache; the processes divide the work."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from spectok import ImageTokenizer, TokenSpec
from spectok.distributed import world
from spectok.errors import CheckpointError, DataError
from spectok.places import home
from spectok.processes import barrier, from_main, on_main
from spectok.reading import read_json, sha256_of_file
from spectok.training.lock import run_locked
from spectok.writing import write_text
from spectok_generation.records import describe_record, tokenizer_record
from spectok_generation.tokens import (
    CAPTIONS,
    FORMATS,
    HEADER,
    LABELS,
    TOKENS,
    CacheHeader,
    TokenCache,
    index_width,
    pack,
    read_header,
)

OnImages = Callable[[int], None]
PLAN = "plan.json"
"""What is being extracted, in the directory of an unfinished cache."""


@dataclass(frozen=True)
class Extraction:
    """How a data set is read for the extraction of its tokens.

    Args:
        copies: Passes over the data, each with its own augmentation.
        augmentation: Description of the augmentation; part of the fingerprint of the cache.
        batch_size: Images encoded at once.
        num_workers: Worker processes that load images.
    """

    copies: int = 1
    augmentation: str = "none"
    batch_size: int = 64
    num_workers: int = 0


def extract_tokens(
    tokenizer: ImageTokenizer,
    dataset: Any,
    directory: str | os.PathLike[str],
    how: Extraction | None = None,
    *,
    path: str | None = None,
    subfolder: str | None = None,
    on_images: OnImages | None = None,
) -> TokenCache:
    """Write the tokens of every image of a data set to disk; each process does its share.

    If the directory already holds the tokens of the same weights and data, they are reused; an
    extraction that was stopped goes on where it was.

    Args:
        tokenizer: A trained tokenizer on the device to run on; it is put into eval mode.
        dataset: A :class:`spectok.data.ImageDataset`.
        directory: Directory of the cache.
        how: Batch size, copies and the like.
        path: Where the tokenizer was loaded from; stored in the cache.
        subfolder: Folder inside it, if one was given; stored as well.
        on_images: Called with the number of images this process encoded since the last call.

    Raises:
        CheckpointError: If the directory holds something else, or writing fails.
        DataError: If the data set is empty or its images do not fit the tokenizer.
    """
    how, target = how or Extraction(), Path(home(directory))
    tokenizer.eval()
    header = _plan_header(tokenizer, dataset, how, tokenizer_record(tokenizer, path, subfolder))
    temporary = target.with_name(target.name + ".partial")
    with run_locked(target, beside=True):
        if not from_main(lambda: _is_finished(target, header) or _begin(temporary, header, how)):
            try:
                _write_share(tokenizer, dataset, temporary, header, how, on_images)
            except OSError as error:
                raise CheckpointError(
                    f"cannot write tokens to {temporary}: {error.strerror}; repeat the command to "
                    f"go on where it stopped"
                ) from error
            barrier()
            on_main(lambda: _finish(temporary, target, header))
    return TokenCache(target)


def check_image_shape(dataset: Any, tokenizer: ImageTokenizer) -> None:
    """Check that a data set serves images as a tokenizer takes them.

    Raises:
        DataError: Names both shapes.
    """
    if tuple(dataset.image_shape) != tuple(tokenizer.image_shape):
        raise DataError(
            f"images of shape {tuple(dataset.image_shape)} do not fit the tokenizer, which takes "
            f"{tuple(tokenizer.image_shape)}; set data.image_size and data.channels"
        )


def _plan_header(
    tokenizer: ImageTokenizer, dataset: Any, how: Extraction, record: dict[str, Any]
) -> CacheHeader:
    if len(dataset) == 0 or how.copies < 1:
        raise DataError(
            f"nothing to extract from {len(dataset)} images and {how.copies} copies of each"
        )
    check_image_shape(dataset, tokenizer)
    return CacheHeader(
        token_spec=tokenizer.token_spec.to_dict(),
        count=len(dataset) * how.copies,
        tokenizer=record,
        data=f"{dataset.fingerprint} x{how.copies}, augmentation: {how.augmentation}",
        num_classes=dataset.num_classes or 0,
        class_names=dataset.class_names,
        has_captions=dataset.has_captions,
        copies=how.copies,
        format=FORMATS[any(len(dataset.captions_of(row)) > 1 for row in range(len(dataset)))],
    )


def _is_finished(target: Path, header: CacheHeader) -> bool:
    """Return whether the target already is the planned cache.

    Raises:
        CheckpointError: If it holds anything else.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not (target / HEADER).is_file():
        raise CheckpointError(
            f"{target} holds something other than a token cache (no {HEADER}); choose "
            f"another folder"
        )
    found = read_header(target)
    if found.fingerprint != header.fingerprint:
        other = "other images" if found.data != header.data else "the same images"
        raise CheckpointError(
            f"{target} already holds tokens that {describe_record(found.tokenizer)} made from "
            f"{other}; choose another directory or delete it"
        )
    return True


def _begin(directory: Path, header: CacheHeader, how: Extraction) -> bool:
    """Make the directory of the shares, or keep one whose extraction was stopped.

    Returns:
        False: there is work to do.
    """
    plan = {
        "fingerprint": header.fingerprint,
        "count": header.count,
        "batch_size": how.batch_size,
        "processes": world()[1],
    }
    with contextlib.suppress(CheckpointError):
        if read_json(directory / PLAN, CheckpointError) == plan:
            return False
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_text(directory / PLAN, json.dumps(plan), CheckpointError)
    return False


def _write_share(
    tokenizer: ImageTokenizer,
    dataset: Any,
    directory: Path,
    header: CacheHeader,
    how: Extraction,
    on_images: OnImages | None,
) -> None:
    """Write the share of this process, from where an extraction that was stopped left off."""
    rank, size = world()
    share = range(rank * header.count // size, (rank + 1) * header.count // size)
    parts = _parts_of_copies(share, len(dataset))
    width = index_width(tokenizer.token_spec)
    paths = {name: directory / f"{name}.{rank}" for name in _file_names(header)}
    done = whole_batches(parts, _rows_written(paths, tokenizer.token_spec), how.batch_size)
    _cut(paths, tokenizer.token_spec, done)
    if done and on_images is not None:
        on_images(done)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(path.open("ab")) for name, path in paths.items()}
        for batch in _batches(dataset, parts, how, done):
            images: Tensor = batch["images"].to(tokenizer.device, tokenizer.dtype)
            indices = tokenizer.encode(images).cpu().numpy()
            files[TOKENS].write(pack(indices, width).tobytes())
            if LABELS in files:
                files[LABELS].write(batch["label"].numpy().astype("<i8").tobytes())
            if CAPTIONS in files:
                captions = (dataset.captions_of(index) for index in batch["index"].tolist())
                lines = "".join(_caption_line(texts, header.format) for texts in captions)
                files[CAPTIONS].write(lines.encode())
            if on_images is not None:
                on_images(len(images))


def _rows_written(paths: dict[str, Path], spec: TokenSpec) -> int:
    """Return how many rows are in every file of a share."""
    found = []
    for name, path in paths.items():
        if not path.is_file():
            return 0
        if name == CAPTIONS:
            found.append(path.read_bytes().count(b"\n"))
        else:
            found.append(path.stat().st_size // _row_bytes(name, spec))
    return min(found)


def _cut(paths: dict[str, Path], spec: TokenSpec, rows: int) -> None:
    """Drop what comes after some rows from every file of a share."""
    for name, path in paths.items():
        path.touch()
        size = rows * _row_bytes(name, spec)
        if name == CAPTIONS:
            size = sum(map(len, path.read_bytes().splitlines(keepends=True)[:rows]))
        os.truncate(path, size)


def _row_bytes(name: str, spec: TokenSpec) -> int:
    """Return the bytes of a row of tokens or of labels."""
    return 8 if name == LABELS else -(-spec.num_tokens * index_width(spec) // 8)


def _finish(directory: Path, target: Path, header: CacheHeader) -> None:
    """Join the shares in order, add the header, and give the directory its name."""
    try:
        _join_shares(directory, header, world()[1])
        hashes = {name: sha256_of_file(directory / name, DataError) for name in _file_names(header)}
        text = json.dumps(asdict(header) | {"hashes": hashes}, indent=2) + "\n"
        write_text(directory / HEADER, text, CheckpointError)
        (directory / PLAN).unlink()
        os.replace(directory, target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write tokens to {target}: {error.strerror}; repeat the command to go on where "
            f"it stopped"
        ) from error


def _caption_line(captions: Sequence[str], format: int) -> str:
    """Return the line of one image in the file of captions."""
    content = list(captions) if format == FORMATS[1] else (*captions, "")[0]
    return json.dumps(content) + "\n"


def _file_names(header: CacheHeader) -> list[str]:
    optional = [(LABELS, header.num_classes > 0), (CAPTIONS, header.has_captions)]
    return [TOKENS, *(name for name, present in optional if present)]


def _parts_of_copies(share: range, length: int) -> list[tuple[int, range]]:
    """Return the images of a share by copy; row ``c * length + i`` is image i of copy c."""
    copies = range(share.start // length, -(-share.stop // length))
    parts = []
    for copy in copies:
        first = copy * length
        start, stop = max(share.start, first) - first, min(share.stop, first + length) - first
        parts.append((copy, range(start, stop)))
    return parts


def whole_batches(parts: list[tuple[int, range]], rows: int, batch_size: int) -> int:
    """Return how many of the first rows of a share are whole batches.

    Args:
        parts: The images of the share by copy; no batch holds images of two copies.
        rows: Rows that are written.
        batch_size: Images encoded at once.
    """
    whole = 0
    for _, images in parts:
        if rows < len(images):
            return whole + rows - rows % batch_size
        whole, rows = whole + len(images), rows - len(images)
    return whole


def _batches(
    dataset: Any, parts: list[tuple[int, range]], how: Extraction, done: int
) -> Iterator[dict[str, Any]]:
    """Read the images of a share after its first rows, each as augmented in its copy's epoch."""
    for copy, images in parts:
        rest, done = images[done:], max(0, done - len(images))
        if not rest:
            continue
        dataset.set_epoch(copy)
        # Its own generator: drawing from the global one would change the training that follows.
        yield from DataLoader(
            Subset(dataset, list(rest)),
            how.batch_size,
            num_workers=how.num_workers,
            generator=torch.Generator(),
        )


def _join_shares(directory: Path, header: CacheHeader, size: int) -> None:
    """Join the shares; they stay until all are joined, so that joining can be repeated."""
    names = _file_names(header)
    for name in names:
        with (directory / name).open("wb") as joined:
            for rank in range(size):
                with (directory / f"{name}.{rank}").open("rb") as source:
                    shutil.copyfileobj(source, joined, 1 << 20)
    for name in names:
        for rank in range(size):
            (directory / f"{name}.{rank}").unlink()
