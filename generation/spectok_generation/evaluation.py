"""Measure a prior: draw many images, and compare them with real ones."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectok import ImageTokenizer
from spectok.data import ImageDataset
from spectok.errors import DataError, InputError
from spectok.evaluation import Classes, Networks, evaluate_images
from spectok.evaluation.features import find_extractors
from spectok.evaluation.measuring import check_shape, type_name
from spectok.evaluation.reconstruction import interior_of
from spectok.evaluation.sets import FEWEST
from spectok.modeling import model_fingerprint
from spectok.processes import from_main
from spectok_generation.drawing import choose_labels, make_options, spelled_out
from spectok_generation.priors import Prior
from spectok_generation.records import prior_fingerprint
from spectok_generation.sample_folder import Wanted, draw_to_folder, read_samples
from spectok_generation.sharing import check_numbers
from spectok_generation.text.encoder import TextEncoder


def evaluate_prior(
    prior: Prior,
    tokenizer: ImageTokenizer,
    dataset: ImageDataset,
    wanted: Wanted,
    networks: Networks | None = None,
    *,
    encoder: TextEncoder | None = None,
    folder: Path | None = None,
    batch_size: int = 64,
    on_draw: Callable[[int], None] | None = None,
    on_compare: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Draw images from a prior, and compare them with real ones.

    The processes divide the drawing, into files; the main one compares. So the images and the
    numbers depend neither on the batch size nor on the number of processes, and memory not on the
    number of images.

    Args:
        prior: A trained prior of any kind, on the device to run on.
        tokenizer: The tokenizer it belongs to, on the same device.
        dataset: Held-out images, without augmentation.
        wanted: What to draw; see :func:`choose_wanted`.
        networks: Where to find the networks in whose features images are compared.
        encoder: The text encoder of a prior that reads text.
        folder: Where to keep the images, to go on after a stop. None: a temporary folder.
        batch_size: Images drawn at once.
        on_draw: Called with the number of images drawn since the last call.
        on_compare: Called with the number of images compared since the last call.

    Returns:
        What :func:`spectok.evaluation.evaluate_images` returns, with ``prior``, ``sampling`` and
        ``parameters``, on every process.

    Raises:
        InputError: If there are fewer than two images, or shapes, classes or texts do not fit.
        CheckpointError: If the folder holds anything else, or given weights cannot be used.
    """
    check_shape(tokenizer, dataset)
    if min(wanted.num_images, len(dataset)) < FEWEST:
        raise InputError(
            f"{wanted.num_images} drawn and {len(dataset)} real images cannot be compared as "
            f"sets; give at least {FEWEST} of each (--num-images, --limit)"
        )
    shape: Any = tuple(interior_of(dataset[0]["images"], dataset).shape)
    find_extractors(networks or Networks(), shape, "cpu")  # before hours of drawing
    options = spelled_out(prior, wanted.options or make_options(prior, {}))
    wanted = dataclasses.replace(wanted, options=options)

    def compare(place: Path) -> dict[str, Any]:
        return evaluate_images(
            read_samples(place, wanted.num_images, tokenizer.image_shape),
            dataset,
            networks,
            classes=_classes(prior, wanted),
            device=prior.device,
            precision=type_name(prior.dtype),
            seed=wanted.seed,
            on_images=on_compare,
        )

    temporary = None if folder else from_main(lambda: tempfile.mkdtemp(prefix="spectok-"))
    place = Path(folder or Path(str(temporary), "images"))
    try:
        draw_to_folder(
            prior, tokenizer, place, wanted, encoder=encoder, batch_size=batch_size,
            on_images=on_draw,
        )  # fmt: skip
        found = from_main(lambda: compare(place))
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return found | {
        "prior": {
            "class": type(prior).__name__,
            "fingerprint": prior_fingerprint(prior),
            "tokenizer": model_fingerprint(tokenizer),
        },
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "sampling": dataclasses.asdict(options),
    }


def choose_wanted(prior: Prior, dataset: ImageDataset, num_images: int, **settings: Any) -> Wanted:
    """Return what to draw for an evaluation: all classes, or all captions of the data, in turn.

    Args:
        prior: A trained prior.
        dataset: The real images.
        num_images: Images to draw.
        **settings: Seed and options of :class:`Wanted`.

    Raises:
        InputError: If the number is below 1.
        DataError: If the prior reads text, and the data has no captions.
    """
    check_numbers(num_images)
    if not prior.text_width:
        return Wanted(num_images, choose_labels(prior, num_images), **settings)
    captions = [text for i in range(len(dataset)) for text in dataset.captions_of(i)[:1] if text]
    if not captions:
        raise DataError("this prior draws captions, and the data has none; give captioned images")
    return Wanted(num_images, prompts=captions, **settings)


def _classes(prior: Prior, wanted: Wanted) -> Classes | None:
    if wanted.labels is None:
        return None
    names = prior.tokenizer_record.get("class_names")
    return Classes(wanted.labels.tolist(), prior.num_classes, names)
