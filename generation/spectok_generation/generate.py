"""From a trained prior and its tokenizer to images."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import ImageTokenizer
from spectok.errors import CheckpointError, InputError
from spectok.loading import load_trained
from spectok.plugins import registry
from spectok_generation.conditions import Condition, check_count
from spectok_generation.diffusion import LDM, DiffusionOptions, sample_latents
from spectok_generation.priors import AutoregressivePrior, Prior, load_prior
from spectok_generation.records import describe_record, same_tokenizer, tokenizer_record
from spectok_generation.sampling import Known, SamplingOptions, sample_batch
from spectok_generation.sharing import check_numbers, share_out
from spectok_generation.text.encoder import TEXT_WEIGHTS, TextEncoder
from spectok_generation.text.loading import load_text_encoder

OWN_TOKENIZER, OWN_CLIP = Path("tokenizer", "model"), Path("clip", "model")
"""Where a run that trained its own tokenizer, or its own CLIP, keeps it."""
DRAWABLE = (AutoregressivePrior, LDM)
"""Kinds of priors that images can be drawn from."""
INDEX = "model_index.json"
"""The file that makes a folder a pipeline; see :class:`spectok_generation.TokenPipeline`."""

BASES: dict[str, type] = {"tokenizer": ImageTokenizer, "prior": Prior}

Options = SamplingOptions | DiffusionOptions


def load_pair(
    prior_path: str | os.PathLike[str], tokenizer_path: str | os.PathLike[str] | None = None
) -> tuple[Any, ImageTokenizer]:
    """Load a trained prior and the tokenizer it belongs to, in eval mode.

    The prior is an :class:`AutoregressivePrior` or an :class:`LDM`, for :func:`draw_images`.

    Args:
        prior_path: Directory of a saved prior, of its run, or of a pipeline.
        tokenizer_path: Its tokenizer. None: the one in the pipeline, or the one recorded when the
            prior was trained.

    Raises:
        CheckpointError: If either is missing, or they do not belong together.
        InputError: If the prior is not one that the sampler can draw from.
    """
    folder = Path(prior_path)
    whole = is_pipeline(folder)
    prior: Any = load_component(folder, "prior") if whole else load_prior(folder)
    if not isinstance(prior, DRAWABLE):
        raise InputError(f"{prior_path} holds a {type(prior).__name__}, which is not sampled here")
    if whole and tokenizer_path is None:
        where, tokenizer = str(folder / "tokenizer"), load_component(folder, "tokenizer")
    else:
        where = os.fspath(tokenizer_path or _recorded_path(prior, folder))
        tokenizer = load_trained(where)
    check_pair(prior, tokenizer, where)
    return prior, tokenizer


def load_encoder(
    prior: Prior,
    prior_path: str | os.PathLike[str],
    name: str | None = None,
    pretrained: str | None = None,
) -> TextEncoder:
    """Load the text encoder that a prior was trained with.

    Args:
        prior: A trained prior that reads text.
        prior_path: Where it was loaded from.
        name: Folder or name of the encoder. None: the one in the pipeline, or the one recorded
            when the prior was trained.
        pretrained: With a name: tag or file of its weights.

    Raises:
        InputError: If the prior reads no text.
        CheckpointError: If the encoder is missing, or is another one.
    """
    if not prior.text_width:
        raise InputError(f"{prior_path} holds a prior that reads no text; see 'spectok sample'")
    if name is None and is_pipeline(prior_path):
        encoder = load_component(prior_path, "text_encoder")
    elif name is None:
        needed = prior.config["text"]
        own = [path / OWN_CLIP for path in (Path(prior_path), Path(prior_path).parent)]
        places = [Path(needed["path"]), *own] if needed["path"] else own
        found = next((place for place in places if place.is_dir()), needed["path"])
        if not found:
            raise CheckpointError(f"no text encoder is recorded in {prior_path}; give its own")
        encoder = load_text_encoder(str(found), needed["pretrained"])
    else:
        encoder = load_text_encoder(name, pretrained)
    check_encoder(prior, encoder)
    return encoder


def check_pair(prior: Prior, tokenizer: ImageTokenizer, where: str | None = None) -> None:
    """Refuse a tokenizer that did not make the tokens that a prior learned.

    Args:
        prior: A trained prior.
        tokenizer: The tokenizer to decode with.
        where: Its path, for the message.

    Raises:
        CheckpointError: Names the tokenizer that was given and the one that is needed.
    """
    given, needed = tokenizer_record(tokenizer, where), prior.tokenizer_record
    if needed and not same_tokenizer(given, needed):
        raise CheckpointError(
            f"this prior models the tokens of {describe_record(needed)}, not those of "
            f"{describe_record(given)}; give the tokenizer it was trained with"
        )
    if prior.token_spec != tokenizer.token_spec:
        raise CheckpointError(
            f"this prior models {prior.token_spec.num_tokens} tokens laid out differently from the "
            f"{tokenizer.token_spec.num_tokens} of {describe_record(given)}"
        )


def check_encoder(prior: Prior, encoder: TextEncoder | None) -> None:
    """Refuse a text encoder that is not the one whose features a prior learned to read.

    Args:
        prior: A trained prior.
        encoder: What its prompts are read with; None for a prior that reads no text.

    Raises:
        CheckpointError: Names the encoder that was given and the one that is needed.
        InputError: If the prior reads no text and an encoder is given, or the other way round.
    """
    kind = type(prior).__name__
    if encoder is None and prior.text_width:
        raise InputError(f"this {kind} reads text; give the text encoder it was trained with")
    if encoder is None:
        return
    if not prior.text_width:
        raise InputError(f"this {kind} reads no text; leave the text encoder out")
    needed = prior.config["text"]
    if encoder.fingerprint != needed["fingerprint"]:
        raise CheckpointError(
            f"this prior reads the features of {describe_record(needed)}, not those of "
            f"{describe_record(encoder.record)}; give the encoder it was trained with"
        )


def is_pipeline(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a saved pipeline."""
    return Path(path, INDEX).is_file()


def load_component(path: str | os.PathLike[str], name: str) -> Any:
    """Load one part of a saved pipeline, in eval mode.

    Args:
        path: Folder of the pipeline.
        name: ``"tokenizer"``, ``"prior"`` or ``"text_encoder"``.

    Raises:
        CheckpointError: If it is missing or damaged, or its class is not installed.
    """
    folder, index, again = Path(path), read_index(path), "copy or export the pipeline again"
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(e, str) for e in entry):
        kind = index.get("_class_name")
        raise CheckpointError(f"{folder / INDEX}, of a {kind}, names no {name}; {again}")
    if not (folder / name).is_dir():
        raise CheckpointError(f"{folder} has no folder {name}; {again}")
    if name in BASES:
        return find_class(name, *entry).from_pretrained(folder / name)
    if not (folder / name / TEXT_WEIGHTS).is_file():
        raise CheckpointError(f"{folder / name} has no {TEXT_WEIGHTS}; {again}")
    return load_text_encoder(str(folder / name))


def read_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a saved pipeline consists of.

    Raises:
        CheckpointError: If the folder is no pipeline, or the file is damaged.
    """
    if not is_pipeline(path):
        raise CheckpointError(
            f"{path} is no pipeline (no {INDEX}); make one of a run: spectok export RUN --out DIR"
        )
    try:
        return dict(json.loads(Path(path, INDEX).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{Path(path, INDEX)} is not a JSON object ({error}); copy or export the pipeline again"
        ) from error


def find_class(kind: str, module: str, name: str) -> Any:
    """Return the class of a saved tokenizer or prior: one that is registered, or importable.

    Raises:
        CheckpointError: If nothing installed provides it.
    """
    registered = registry.list_registered(kind).values()
    named = sorted(
        (cls for cls in registered if cls.__name__ == name), key=lambda c: c.__module__ != module
    )
    if named and named[0].__module__ == module:
        return named[0]
    reason = f"it is no {kind}"
    try:
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type) and issubclass(found, BASES[kind]):
            return found
    except Exception as error:  # another package may fail to import in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if named:
        return named[0]  # its plugin has moved it to another module
    raise CheckpointError(
        f"the {kind} {module}.{name} cannot be found ({reason}); install the package that has it"
    )


def choose_labels(
    prior: Prior, num_images: int, wanted: int | None = None
) -> Int[Tensor, "n"] | None:
    """Return the class of each image to draw: the wanted one, or all classes in turn.

    Raises:
        InputError: If the prior has no such class.
    """
    if wanted is None and not prior.num_classes:
        return None
    if wanted is None:
        return torch.arange(num_images) % prior.num_classes
    if not 0 <= wanted < prior.num_classes:
        known = f"0..{prior.num_classes - 1}" if prior.num_classes else "none: it is unconditional"
        raise InputError(f"class {wanted} is not one of this prior's classes ({known})")
    return torch.full((num_images,), wanted)


def make_options(prior: Prior, wishes: Mapping[str, Any]) -> Options:
    """Return the options that a kind of prior takes, from those of them that are wished for.

    Args:
        prior: A trained prior.
        wishes: Values by name; None: not wished for.

    Raises:
        InputError: If one is of another kind of prior, or out of range.
    """
    kind = DiffusionOptions if isinstance(prior, LDM) else SamplingOptions
    known = [field.name for field in dataclasses.fields(kind)]
    given = {name: value for name, value in wishes.items() if value is not None}
    for name in given:
        if name not in known:
            raise InputError(
                f"{name} {given[name]} means nothing to {type(prior).__name__}, which takes "
                f"{', '.join(known)}; leave it out"
            )
    return kind(**given)


def draw_images(
    prior: Prior,
    tokenizer: ImageTokenizer,
    num_images: int,
    condition: Condition | None = None,
    *,
    seed: int = 0,
    options: Options | None = None,
    batch_size: int = 64,
    known: Known | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Draw images from a prior of any kind, shared out among the processes.

    Args:
        prior: A trained prior, on the device to sample on.
        tokenizer: The tokenizer it belongs to, on the same device.
        num_images: Images in all; they are numbered from 0.
        condition: Class or text of each image, for a prior that takes one.
        seed: With the image's number, the only source of randomness.
        options: :class:`SamplingOptions` or, for an :class:`LDM`, :class:`DiffusionOptions`.
        batch_size: Images drawn at once on each process.
        known: Tokens of the images that are kept as they are; not for an :class:`LDM`.
        on_images: Called with the number of images drawn over all processes since the last call.

    Returns:
        Images on the CPU, about [-1, 1] (not clamped), the same on every process.

    Raises:
        InputError: If condition or options do not fit the prior.
    """
    check_numbers(num_images, batch_size)
    if condition is not None:
        check_count(condition, num_images)

    def draw(numbers: list[int]) -> Tensor:
        chosen = None if condition is None else condition[numbers]
        given = None if known is None else known[numbers]
        return draw_batch(
            prior, tokenizer, numbers, chosen, seed=seed, options=options, known=given
        )

    images = torch.zeros(num_images, *tokenizer.image_shape)
    return share_out(draw, images, batch_size, prior.device, on_images)


def draw_batch(
    prior: Prior,
    tokenizer: ImageTokenizer,
    numbers: Sequence[int],
    condition: Condition | None = None,
    *,
    seed: int = 0,
    options: Options | None = None,
    known: Known | None = None,
) -> Float[Tensor, "b c h w"]:
    """Draw one batch of images on this process alone; see :func:`draw_images`.

    Args:
        prior: A trained prior.
        tokenizer: The tokenizer it belongs to, on the same device.
        numbers: The number of each image, which with ``seed`` decides its randomness.
        condition: Class or text of each image.
        seed: See :func:`draw_images`.
        options: See :func:`draw_images`.
        known: See :func:`draw_images`.
    """
    if isinstance(prior, LDM):
        if isinstance(options, SamplingOptions):
            raise InputError("an LDM draws latents, not tokens; give DiffusionOptions")
        if known is not None:
            raise InputError("an LDM draws latents and cannot keep tokens; leave them out")
        latents = sample_latents(prior, numbers, condition, seed=seed, options=options)
        return decode_latents(tokenizer, latents)
    if not isinstance(prior, AutoregressivePrior) or isinstance(options, DiffusionOptions):
        raise InputError(f"a {type(prior).__name__} does not draw latents; give SamplingOptions")
    tokens = sample_batch(prior, numbers, condition, seed=seed, options=options, known=known)
    return decode_tokens(tokenizer, tokens)


@torch.no_grad()
def decode_latents(
    tokenizer: ImageTokenizer, latents: Float[Tensor, "n lc lh lw"]
) -> Float[Tensor, "n c h w"]:
    """Quantise and decode latents into images on the CPU, about [-1, 1] (not clamped)."""
    return tokenizer.decode_latents(latents.to(tokenizer.device, tokenizer.dtype)).float().cpu()


@torch.no_grad()
def decode_tokens(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "n t"], batch_size: int = 64
) -> Float[Tensor, "n c h w"]:
    """Decode tokens batch by batch into images on the CPU, about [-1, 1] (not clamped)."""
    batches = indices.to(tokenizer.device).split(batch_size)
    return torch.cat([tokenizer.decode(batch).float().cpu() for batch in batches])


def _recorded_path(prior: Prior, prior_path: Path) -> Path:
    record: dict[str, Any] = prior.tokenizer_record
    recorded = Path(record["path"]) if record.get("path") else None
    runs = (prior_path, prior_path.parent)
    for candidate in [recorded, *(run / OWN_TOKENIZER for run in runs)]:
        if candidate is not None and candidate.is_dir():
            return candidate
    if recorded is not None and record["path"].count("/") == 1:
        return recorded  # a hub id
    raise CheckpointError(
        f"the tokenizer of this prior is not at {recorded or 'any recorded place'}; give it with "
        f"--tokenizer"
    )
