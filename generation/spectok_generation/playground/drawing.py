"""What the playground draws with a prior: new images, and painted parts of an image anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from PIL.Image import Image
from torch import Tensor

from spectok import ImageTokenizer, TokenSpec
from spectok.errors import InputError
from spectok.evaluation.influence import influence
from spectok_generation.conditions import Condition
from spectok_generation.diffusion import LDM
from spectok_generation.drawing import choose_labels, draw_images, make_options
from spectok_generation.playground.pictures import show
from spectok_generation.playground.subjects import Subject
from spectok_generation.playground.views import NUM_REPLACEMENTS
from spectok_generation.sampling import Known

MAX_IMAGES = 16
TURNS = "all in turn"


def why_no_samples(subject: Subject) -> str:
    """Return why a model draws no new images; empty if it does."""
    if subject.prior is not None:
        return ""
    return (
        "A tokenizer alone draws nothing new: that takes a prior of its tokens. Start with one, "
        "such as the folder of a run: spectok ui runs/my-prior"
    )


def why_no_redrawing(subject: Subject) -> str:
    """Return why a model cannot draw a part of an image anew; empty if it can."""
    if not isinstance(subject.prior, LDM):
        return why_no_samples(subject)
    return (
        f"A {type(subject.prior).__name__} draws latents, and cannot keep some tokens of an image; "
        f"start with a prior of tokens, such as gpt."
    )


def class_choices(subject: Subject) -> list[str]:
    """Return the classes that a prior can be asked for; none if it takes no class."""
    count = getattr(subject.prior, "num_classes", 0)
    return [TURNS, *map(str, range(count))] if count else []


def reads_text(subject: Subject) -> bool:
    """Return whether a prior draws what a text says."""
    return subject.text_encoder is not None


def draw_samples(
    subject: Subject,
    count: int,
    *,
    label: str | None = None,
    prompt: str = "",
    seed: int = 0,
    temperature: float | None = None,
    guidance: float | None = None,
) -> list[Image]:
    """Draw new images.

    Args:
        subject: With a prior.
        count: How many; at most :data:`MAX_IMAGES`.
        label: One of :func:`class_choices`; None where there is none.
        prompt: What they show, for a prior that reads text.
        seed: As of ``spectok sample``, which draws the same images.
        temperature: Below 1: likelier and less varied. None: the default of the prior's kind.
        guidance: Above 1: pulls towards class or text. None: 1.

    Raises:
        InputError: If the prior takes no such thing, or a value is out of range.
    """
    if reason := why_no_samples(subject):
        raise InputError(reason)
    _check_count(count)
    condition = _condition(subject, count, label, prompt)
    options = _options(subject, temperature, guidance)
    given: dict[str, Any] = {"seed": seed, "options": options, "batch_size": MAX_IMAGES}
    images = draw_images(subject.prior, subject.tokenizer, count, condition, **given)
    return [show(image) for image in images]


def redraw(
    subject: Subject,
    indices: Int[Tensor, "1 t"],
    region: Bool[np.ndarray, "h w"],
    count: int,
    *,
    label: str | None = None,
    prompt: str = "",
    seed: int = 0,
    temperature: float | None = None,
    guidance: float | None = None,
) -> tuple[list[Image], str]:
    """Draw a part of an image anew, and leave the tokens of the rest as they are.

    An autoregressive prior draws a token given those before it in their order, not those after
    it: what is drawn fits what is above and left of it better than what is below. A masked prior
    sees all that is kept.

    Args:
        subject: With a prior of tokens.
        indices: Tokens of the image.
        region: The pixels to draw anew.
        count: How many variants; at most :data:`MAX_IMAGES`.
        label: See :func:`draw_samples`.
        prompt: See :func:`draw_samples`.
        seed: See :func:`draw_samples`.
        temperature: See :func:`draw_samples`.
        guidance: See :func:`draw_samples`.

    Returns:
        The variants, and how many tokens were drawn, in words.

    Raises:
        InputError: If the prior cannot, or a value is out of range.
    """
    if reason := why_no_redrawing(subject):
        raise InputError(reason)
    _check_count(count)
    again = places_of(subject.tokenizer, indices, region)
    keep = (~again).expand(count, -1)
    known = Known(indices.cpu().expand(count, -1), keep)
    condition = _condition(subject, count, label, prompt)
    options = _options(subject, temperature, guidance)
    given: dict[str, Any] = {"seed": seed, "options": options, "known": known}
    images = draw_images(subject.prior, subject.tokenizer, count, condition, **given)
    words = f"{int(again.sum())} of {len(again)} tokens drawn anew."
    return [show(image) for image in images], words


def places_of(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "1 t"], region: Bool[np.ndarray, "h w"]
) -> Bool[Tensor, "t"]:
    """Return which tokens a part of an image is made of.

    On a grid, the tokens whose cells it touches. Tokens of a list describe the whole image: there,
    those that change the region more than the mean token does.

    Args:
        tokenizer: In eval mode.
        indices: Tokens of the image.
        region: Its pixels, of which at least one is true.
    """
    spec, pixels = tokenizer.token_spec, torch.from_numpy(region)
    if all(len(level.shape) == 2 for level in spec.levels):
        return _cells_of(spec, pixels)
    places = range(spec.num_tokens)
    change = influence(tokenizer, indices, places, NUM_REPLACEMENTS)[0].float().cpu()  # (t, h, w)
    inside = change[:, pixels].mean(1)
    return inside >= inside.mean()


def _cells_of(spec: TokenSpec, pixels: Bool[Tensor, "h w"]) -> Bool[Tensor, "t"]:
    touched = [
        F.adaptive_max_pool2d(pixels[None].float(), level.shape).bool() for level in spec.levels
    ]
    return spec.flatten(touched)[0]


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_IMAGES:
        raise InputError(f"{count} images are not within 1 to {MAX_IMAGES}")


def _condition(subject: Subject, count: int, label: str | None, prompt: str) -> Condition | None:
    if subject.text_encoder is not None:
        return subject.text_encoder([prompt])[[0] * count]
    wanted = None if label in (None, TURNS) else _as_class(label)
    return choose_labels(subject.prior, count, wanted)


def _as_class(label: str) -> int:
    if not label.isdecimal():
        raise InputError(f"class {label!r} is no number")
    return int(label)


def _options(subject: Subject, temperature: float | None, guidance: float | None) -> Any:
    """Return the sampling options; a temperature is left out where a prior draws latents."""
    values = {"guidance": guidance}
    if not isinstance(subject.prior, LDM):
        values["temperature"] = temperature
    return make_options(subject.prior, values)
