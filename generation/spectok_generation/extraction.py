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
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from spectok import ImageTokenizer
from spectok.distributed import world
from spectok.errors import CheckpointError, DataError
from spectok.reading import sha256_of_file
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
    on_images: OnImages | None = None,
) -> TokenCache:
    """Write the tokens of every image of a data set to disk; each process does its share.

    If the directory already holds the tokens of the same weights and data, they are reused.

    Args:
        tokenizer: A trained tokenizer on the device to run on; it is put into eval mode.
        dataset: A :class:`spectok.data.ImageDataset`.
        directory: Directory of the cache.
        how: Batch size, copies and the like.
        path: Where the tokenizer was loaded from; stored in the cache.
        on_images: Called with the number of images this process encoded since the last call.

    Raises:
        CheckpointError: If the directory holds something else, or writing fails.
        DataError: If the data set is empty or its images do not fit the tokenizer.
    """
    how, target = how or Extraction(), Path(directory)
    tokenizer.eval()
    header = _plan_header(tokenizer, dataset, path, how)
    if _is_finished(target, header):
        return TokenCache(target)
    temporary = target.with_name(target.name + ".partial")
    try:
        _write_cache(tokenizer, dataset, temporary, header, how, on_images)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write tokens to {temporary}: {error}") from error
    if world()[0] == 0:
        os.replace(temporary, target)
    barrier()
    return TokenCache(target)


def _plan_header(
    tokenizer: ImageTokenizer, dataset: Any, path: str | None, how: Extraction
) -> CacheHeader:
    if len(dataset) == 0 or how.copies < 1:
        raise DataError(
            f"nothing to extract from {len(dataset)} images and {how.copies} copies of each"
        )
    if tuple(dataset.image_shape) != tuple(tokenizer.image_shape):
        raise DataError(
            f"images of shape {tuple(dataset.image_shape)} do not fit the tokenizer, which takes "
            f"{tuple(tokenizer.image_shape)}; set data.image_size and data.channels"
        )
    return CacheHeader(
        token_spec=tokenizer.token_spec.to_dict(),
        count=len(dataset) * how.copies,
        tokenizer=tokenizer_record(tokenizer, path),
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


def _write_cache(
    tokenizer: ImageTokenizer,
    dataset: Any,
    directory: Path,
    header: CacheHeader,
    how: Extraction,
    on_images: OnImages | None,
) -> None:
    """Write the share of each process, then join the shares in order and add the header."""
    rank, size = world()
    if rank == 0:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    barrier()
    share = range(rank * header.count // size, (rank + 1) * header.count // size)
    width = index_width(tokenizer.token_spec)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context((directory / f"{name}.{rank}").open("wb"))
            for name in _file_names(header)
        }
        for batch in _batches(dataset, share, how):
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
    barrier()
    if rank == 0:
        _join_shares(directory, header, size)
        hashes = {name: sha256_of_file(directory / name, DataError) for name in _file_names(header)}
        text = json.dumps(asdict(header) | {"hashes": hashes}, indent=2) + "\n"
        (directory / HEADER).write_text(text, encoding="utf-8")


def _caption_line(captions: Sequence[str], format: int) -> str:
    """Return the line of one image in the file of captions."""
    content = list(captions) if format == FORMATS[1] else (*captions, "")[0]
    return json.dumps(content) + "\n"


def _file_names(header: CacheHeader) -> list[str]:
    optional = [(LABELS, header.num_classes > 0), (CAPTIONS, header.has_captions)]
    return [TOKENS, *(name for name, present in optional if present)]


def _batches(dataset: Any, share: range, how: Extraction) -> Iterator[dict[str, Any]]:
    """Read the rows of a share; row ``c * len(dataset) + i`` is image i as augmented in epoch c."""
    for copy in range(how.copies):
        first = copy * len(dataset)
        rows = range(max(share.start, first), min(share.stop, first + len(dataset)))
        if not rows:
            continue
        dataset.set_epoch(copy)
        part = Subset(dataset, [row - first for row in rows])
        # Its own generator: drawing from the global one would change the training that follows.
        yield from DataLoader(
            part, how.batch_size, num_workers=how.num_workers, generator=torch.Generator()
        )


def _join_shares(directory: Path, header: CacheHeader, size: int) -> None:
    for name in _file_names(header):
        parts = [directory / f"{name}.{rank}" for rank in range(size)]
        with (directory / name).open("wb") as joined:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, joined, 1 << 20)
                part.unlink()


def barrier() -> None:
    """Wait until every process arrives here."""
    if world()[1] > 1:
        dist.barrier()
