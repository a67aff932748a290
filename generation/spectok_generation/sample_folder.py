"""Drawn images as single files: a folder of PNGs with a line for each in ``metadata.jsonl``.

Images are written batch by batch, each by the process that drew it, and none is ever sent to
another or kept. A file has its name only once it is whole, so a folder says by itself which images
are missing: drawing goes on there with any batch size and number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from spectok import ImageTokenizer
from spectok.data.files import load_image
from spectok.distributed import world
from spectok.errors import CheckpointError, InputError, shown
from spectok.images import save_picture, to_pil
from spectok.modeling import model_fingerprint
from spectok.places import home
from spectok.processes import barrier, from_main, on_main
from spectok.reading import read_json
from spectok.training.lock import run_locked
from spectok.writing import whole_file, write_text
from spectok_generation.conditions import Condition, check_labels
from spectok_generation.drawing import Options, draw_batch, make_options, spelled_out
from spectok_generation.pairs import check_encoder, check_pair
from spectok_generation.priors import Prior
from spectok_generation.records import prior_fingerprint
from spectok_generation.sampling import Known
from spectok_generation.sharing import check_numbers
from spectok_generation.text.encoder import TextEncoder

PLAN, MANIFEST = "samples.json", "metadata.jsonl"
"""What a folder is to hold, written first; and a line for each image, written last."""
FORMAT = 1
UNFINISHED = re.compile(r"\.\d+\.partial\.\w+")
"""Names of files that a process was killed while writing; see ``whole_file``."""
PNG_END = b"IEND\xaeB`\x82"
HASHED = ("labels", "prompts", "known")
"""Settings that a plan holds as a hash."""


@dataclass(frozen=True)
class Wanted:
    """What to draw.

    Args:
        num_images: Images in all; they are numbered from 0.
        labels: Class of each image, for a prior of classes.
        prompts: Texts that the images take in turn, for a prior that reads text.
        seed: The only source of randomness, together with the number of the image.
        options: As for :func:`~spectok_generation.draw_images`. None: the defaults of the prior.
        known: Tokens to keep as they are.
    """

    num_images: int
    labels: Int[Tensor, "n"] | None = None
    prompts: Sequence[str] | None = None
    seed: int = 0
    options: Options | None = None
    known: Known | None = None

    def condition(self, numbers: Sequence[int], encoder: TextEncoder | None) -> Condition | None:
        """Return the class or text of some images."""
        if self.labels is not None:
            return self.labels[list(numbers)]
        if not self.prompts or encoder is None:
            return None
        texts = [self.prompts[number % len(self.prompts)] for number in numbers]
        distinct = list(dict.fromkeys(texts))
        return encoder(distinct)[[distinct.index(text) for text in texts]]

    def describe(self, number: int) -> dict[str, Any]:
        """Return what an image shows and which tokens it kept, for its line of the manifest."""
        kept = {} if self.known is None else self.known.describe(number)
        if self.labels is not None:
            return {"class": int(self.labels[number])} | kept
        return {"prompt": self.prompts[number % len(self.prompts)]} | kept if self.prompts else kept

    def check(self, prior: Prior, encoder: TextEncoder | None) -> None:
        """Check that a prior can draw this.

        Raises:
            InputError: If the number, a class, the texts or the encoder do not fit.
            TokenError: If known tokens do not fit.
        """
        check_numbers(self.num_images)
        if self.labels is not None:
            check_labels(self.labels, prior.num_classes, self.num_images)
        elif not self.prompts:
            prior.check_can_omit(None)
        if self.prompts and not prior.text_width:
            raise InputError(f"this {type(prior).__name__} reads no text; leave prompts out")
        if self.prompts:
            check_encoder(prior, encoder)
        if self.known is not None:
            self.known.check(self.num_images, prior.token_spec)


def draw_to_folder(
    prior: Prior,
    tokenizer: ImageTokenizer,
    folder: str | os.PathLike[str],
    wanted: Wanted,
    *,
    encoder: TextEncoder | None = None,
    batch_size: int = 64,
    on_images: Callable[[int], None] | None = None,
) -> Path:
    """Draw images into a folder as PNG files, divided among the processes.

    Image ``i`` is that of :func:`~spectok_generation.draw_images`. Where the folder already holds
    some of these images, the others are drawn, and so are those whose files are damaged: cut short,
    or different from their own checksums. A damaged manifest is written again. Every process must
    see the folder.

    Args:
        prior: A trained prior, on the device to sample on.
        tokenizer: The tokenizer it belongs to, on the same device.
        folder: New or empty, or of an earlier call.
        wanted: What to draw.
        encoder: The text encoder of a prior that reads text, on the same device.
        batch_size: Images drawn at once on each process.
        on_images: Called with the number of images all processes drew since the last call; first
            with that of images already there.

    Returns:
        The manifest, :data:`MANIFEST`: JSON lines with ``file_name``, ``number``, ``seed``, the
        ``class`` or ``prompt``, what was kept of known tokens (:meth:`Known.describe`), the
        sampling options, and the fingerprints of ``prior`` and ``tokenizer``.

    Raises:
        InputError: If what is wanted does not fit the prior, or a file cannot be written.
        CheckpointError: If the folder holds anything else, or images of other settings.
    """
    target = Path(home(folder))
    check_numbers(wanted.num_images, batch_size)
    check_pair(prior, tokenizer)
    wanted.check(prior, encoder)
    options = spelled_out(prior, wanted.options or make_options(prior, {}))
    wanted = dataclasses.replace(wanted, options=options)
    plan = _plan(prior, tokenizer, encoder, wanted)
    done = on_images or (lambda count: None)
    rank, size = world()
    with run_locked(target, beside=True):
        missing = from_main(lambda: _begin(target, plan))
        done(wanted.num_images - len(missing))
        mine = missing[rank::size]
        for start in range(0, len(mine), batch_size):
            numbers = mine[start : start + batch_size]
            _draw(prior, tokenizer, target, wanted, numbers, encoder)
            done(min(len(numbers) * size, len(missing) - start * size))
        barrier()
        on_main(lambda: _finish(target, plan, wanted))
    return target / MANIFEST


def read_samples(
    folder: str | os.PathLike[str],
    num_images: int,
    image_shape: tuple[int, int, int],
    batch_size: int = 64,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Read drawn images in the order of their numbers, in [-1, 1], batch by batch.

    Args:
        folder: Folder of :func:`draw_to_folder`.
        num_images: How many.
        image_shape: (C, H, W).
        batch_size: Images at once.

    Raises:
        DataError: If one is missing or damaged.
    """
    for start in range(0, num_images, batch_size):
        numbers = range(start, min(start + batch_size, num_images))
        paths = [Path(folder, file_name(number)) for number in numbers]
        yield torch.stack([load_image(path, image_shape) for path in paths])


def file_name(number: int) -> str:
    """Return the name of an image's file."""
    return f"{number:06d}.png"


def check_is_ours(folder: Path) -> None:
    """Refuse a folder that holds anything but drawn images.

    Raises:
        CheckpointError: If it does, or is a file.
    """
    with contextlib.suppress(FileNotFoundError):
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file; give a folder for the images")
        held = sorted(name for name in os.listdir(folder) if not UNFINISHED.fullmatch(name))
        if held and PLAN not in held:
            raise CheckpointError(
                f"{folder} holds {shown(held[0])} and no {PLAN}: it is not a folder of drawn "
                "images; give a new one"
            )


def _plan(
    prior: Prior, tokenizer: ImageTokenizer, encoder: TextEncoder | None, wanted: Wanted
) -> dict[str, Any]:
    """Return everything that decides the images, in plain JSON types."""
    known, labels = wanted.known, wanted.labels
    plan = {
        "format": FORMAT,
        "num_images": wanted.num_images,
        "seed": wanted.seed,
        **dataclasses.asdict(wanted.options or make_options(prior, {})),
        "labels": None if labels is None else _hash(labels.tolist()),
        "prompts": None if not wanted.prompts else _hash(list(wanted.prompts)),
        "known": known and _hash([(known.indices * known.keep).tolist(), known.keep.tolist()]),
        "prior": prior_fingerprint(prior),
        "tokenizer": model_fingerprint(tokenizer),
        "text_encoder": None if encoder is None else encoder.fingerprint,
    }
    return json.loads(json.dumps(plan))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _begin(folder: Path, plan: dict[str, Any]) -> list[int]:
    """Make the folder, or check that it is one of the same images; return which are missing."""
    check_is_ours(folder)
    if (folder / PLAN).is_file():
        _check_same(folder, plan)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PLAN, json.dumps(plan, indent=1) + "\n", CheckpointError)
    held = set(os.listdir(folder))
    for name in filter(UNFINISHED.fullmatch, held):
        (folder / name).unlink(missing_ok=True)
    wanted = {file_name(number): number for number in range(plan["num_images"])}
    others = sorted(held - wanted.keys() - {PLAN, MANIFEST})
    others += [name for name in held & wanted.keys() if not (folder / name).is_file()]
    if strange := [name for name in others if not name.startswith(".")]:
        raise CheckpointError(
            f"{folder} holds {shown(strange[0])}, which is no image drawn for it; move it away, or "
            "give another folder"
        )
    return [n for name, n in wanted.items() if name not in held or not _is_whole(folder / name)]


def _is_whole(path: Path) -> bool:
    """Return whether a file is a PNG that is as its checksums say, to its end; none is decoded."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(PNG_END)))
            complete = file.read() == PNG_END  # Pillow does not read the last checksum
            Image.open(file, formats=["PNG"]).verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return complete


def _check_same(folder: Path, plan: dict[str, Any]) -> None:
    """Refuse a folder whose images were drawn with other settings.

    Raises:
        CheckpointError: Names the first that differs.
    """
    try:
        found = read_json(folder / PLAN, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give another folder, or delete this one") from error
    if found == plan:
        return
    before = found if isinstance(found, dict) else {}
    key = next((key for key in plan if before.get(key) != plan[key]), "format")
    differs = f"{key} {shown(before.get(key))}, not {shown(plan.get(key))}"
    raise CheckpointError(
        f"{folder} holds images drawn with {f'other {key}' if key in HASHED else differs}; give "
        "another folder, or delete it"
    )


def _draw(
    prior: Prior,
    tokenizer: ImageTokenizer,
    folder: Path,
    wanted: Wanted,
    numbers: list[int],
    encoder: TextEncoder | None,
) -> None:
    """Draw one batch and write its files."""
    images = draw_batch(
        prior,
        tokenizer,
        numbers,
        wanted.condition(numbers, encoder),
        seed=wanted.seed,
        options=wanted.options,
        known=None if wanted.known is None else wanted.known[numbers],
    )
    for number, image in zip(numbers, images):
        save_picture(to_pil(image), folder / file_name(number))


def _finish(folder: Path, plan: dict[str, Any], wanted: Wanted) -> None:
    """Write the manifest, unless it is there and whole."""
    if _tells(folder / MANIFEST, _rows(plan, wanted)):
        return
    with (
        whole_file(folder / MANIFEST, CheckpointError) as unfinished,
        unfinished.open("w", encoding="utf-8") as lines,
    ):
        for row in _rows(plan, wanted):
            lines.write(json.dumps(row) + "\n")


def _rows(plan: dict[str, Any], wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Return the lines of the manifest."""
    same = {key: value for key, value in plan.items() if key not in ("format", "num_images")}
    same = {key: value for key, value in same.items() if key not in HASHED and value is not None}
    for number in range(wanted.num_images):
        told = {"file_name": file_name(number), "number": number, **wanted.describe(number)}
        yield told | same


def _tells(manifest: Path, rows: Iterator[dict[str, Any]]) -> bool:
    """Return whether a manifest tells of each image what it should; somebody may have added to it.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        with manifest.open(encoding="utf-8") as lines:
            for line, row in itertools.zip_longest(lines, rows):
                found = None if line is None else json.loads(line)
                if row is None or not isinstance(found, dict) or not row.items() <= found.items():
                    return False
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    except OSError as error:
        raise CheckpointError(f"{manifest} cannot be read: {error.strerror}") from error
    return True
