"""The latents of a data set: computed once, kept on disk, read at random."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from spectok.errors import CheckpointError, DataError
from spectok.machine import shown_path
from spectok.messages import progress, say
from spectok.reading import read_json, sha256_of_file
from spectok.weights import fingerprint
from spectok.writing import write_text

FOLDER = "SPECTOK_CACHE"
"""Environment variable: the folder of caches, by default ``~/.cache/spectok``."""
LATENTS, HEADER, LOCK = "latents.bin", "header.json", ".lock"
BATCH = 64
"""Images encoded at once. Part of what a cache is named by: it may decide how numbers round."""
NUM_MEASURED = 4096
"""Most images that statistics are measured on where nothing is cached, spread over the data."""

Shape = tuple[int, int, int]


class LatentDataset(Dataset[dict[str, Any]]):
    """The items of a data set with their latents, from a cache.

    An item is ``{"latents": float32 (c, h, w), "index": int}``, with what the data set itself has
    if ``with_images``. Images are then read as well, and must be those that were encoded.

    Args:
        dataset: A :class:`spectok.data.ImageDataset` without augmentation.
        file: The cache's file of latents.
        shape: Shape of the latents.
        with_images: Whether items carry the images, too.
    """

    def __init__(self, dataset: Any, file: Path, shape: Shape, with_images: bool):
        self.dataset, self.file, self.shape, self.with_images = dataset, file, shape, with_images
        self._rows: np.memmap[Any, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """That of the images."""
        return self.dataset.fingerprint

    @property
    def in_memory(self) -> bool:
        """Whether reading costs next to nothing: latents are mapped, images perhaps not."""
        return not self.with_images or self.dataset.in_memory

    @property
    def rows(self) -> np.memmap[Any, Any]:
        """All latents, mapped into memory; float32, (N, c, h, w)."""
        if self._rows is None:
            shape = (len(self.dataset), *self.shape)
            self._rows = np.memmap(self.file, np.float32, "r", shape=shape)
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.dataset.set_epoch(epoch)

    def batches(self) -> Iterator[Float[Tensor, "b c h w"]]:
        """Return all latents in order."""
        for first in range(0, len(self), 16 * BATCH):
            yield torch.from_numpy(np.array(self.rows[first : first + 16 * BATCH]))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index] if self.with_images else {"index": int(index)}
        return item | {"latents": torch.from_numpy(np.array(self.rows[index]))}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}  # a worker process maps the file itself


def cached_latents(
    encoder: torch.nn.Module, config: dict[str, Any], dataset: Any, shape: Shape, with_images: bool
) -> LatentDataset:
    """Return a data set with its latents, which are computed unless they are on disk.

    Their folder is named by a hash of the encoder's weights and config and of the data, and their
    bytes are compared with their own hash. Of several processes, or several trainings, the first
    computes and the others wait. What was stopped goes on where it was.

    Args:
        encoder: Images to latents; moved to the GPU and back, if there is one.
        config: Everything that decides what the encoder computes besides its weights.
        dataset: A :class:`spectok.data.ImageDataset` without augmentation.
        shape: Shape of the latents.
        with_images: Whether items carry the images, too.

    Raises:
        CheckpointError: If they cannot be written, or were changed.
        DataError: If a latent is not finite.
    """
    folder = cache_folder() / name_of(encoder, config, dataset)
    file = folder / LATENTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):
            if not (folder / HEADER).is_file():
                fill(file, encoder, dataset, shape)
                header = {"images": len(dataset), "shape": list(shape), "dtype": "float32"}
                header |= {"sha256": sha256_of_file(file, CheckpointError)}
                write_text(folder / HEADER, json.dumps(header) + "\n", CheckpointError)
            elif file.stat().st_size != len(dataset) * row_bytes(shape):
                raise CheckpointError(f"{file} is cut short; remove the folder {folder}")
    except OSError as error:
        raise CheckpointError(
            f"latents cannot be written to {folder}: {error.strerror or error}; set {FOLDER} to a "
            f"folder with room for {len(dataset) * row_bytes(shape) >> 20:,} MiB"
        ) from error
    recorded = read_json(folder / HEADER, CheckpointError)
    found = sha256_of_file(file, CheckpointError)
    if not isinstance(recorded, dict) or recorded.get("sha256") != found:
        raise CheckpointError(f"{file} is damaged; remove the folder {folder}")
    say(f"latents of {len(dataset):,} images: {shown_path(folder)}")
    return LatentDataset(dataset, file, shape, with_images)


def cache_folder() -> Path:
    """Return the folder that holds the caches of all autoencoders and data sets."""
    own = os.environ.get(FOLDER)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spectok"
    return (Path(own).expanduser() if own else base) / "latents"


def name_of(encoder: torch.nn.Module, config: dict[str, Any], dataset: Any) -> str:
    """Return a hash of all that decides the latents."""
    weights = fingerprint(type(encoder).__name__, config, encoder.state_dict())
    return hashlib.sha256(f"{weights} {dataset.fingerprint} {BATCH}".encode()).hexdigest()[:32]


def row_bytes(shape: Shape) -> int:
    """Return the bytes of the latents of one image."""
    return 4 * int(np.prod(shape))


def fill(file: Path, encoder: torch.nn.Module, dataset: Any, shape: Shape) -> None:
    """Write the latents of all images, from where an earlier attempt stopped."""
    file.touch()
    done = file.stat().st_size // row_bytes(shape) // BATCH * BATCH
    os.truncate(file, done * row_bytes(shape))
    with file.open("ab") as target, progress("latents", len(dataset)) as advance:
        advance(done)
        for latents in encoded(encoder, dataset, range(done, len(dataset))):
            target.write(np.ascontiguousarray(latents.numpy()).tobytes())
            advance(len(latents))
        target.flush()
        os.fsync(target.fileno())


def spread_rows(length: int) -> list[int]:
    """Return which images statistics are measured on where nothing is cached."""
    return torch.linspace(0, length - 1, min(length, NUM_MEASURED)).long().tolist()


@torch.no_grad()
def encoded(
    encoder: torch.nn.Module, dataset: Any, rows: range | list[int]
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Return the latents of some images, on the CPU, in batches of :data:`BATCH`.

    Raises:
        DataError: If a latent is not finite.
    """
    parameter = next(encoder.parameters())
    before, device = parameter.device, working_device(parameter.device)
    encoder.to(device)
    try:
        # Its own generator: drawing from the global one would change the training that follows.
        loader = DataLoader(Subset(dataset, list(rows)), BATCH, generator=torch.Generator())
        for batch in loader:
            latents = encoder(batch["images"].to(device, parameter.dtype)).float().cpu()
            bad = latents.isfinite().flatten(1).all(1).logical_not().nonzero().flatten().tolist()
            if bad:
                name = dataset.name_of(int(batch["index"][bad[0]]))
                raise DataError(
                    f"the autoencoder's latents of image {name} are infinite or NaN; its weights "
                    f"may be damaged"
                )
            yield latents
    finally:
        encoder.to(before)


def working_device(given: torch.device) -> torch.device:
    """Return this process's GPU, or the device that the encoder is on if there is none."""
    if not torch.cuda.is_available():
        return given
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
