"""Draw images from a prior of any kind: sample tokens or latents, then decode them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectok import ImageTokenizer
from spectok.errors import InputError
from spectok_generation.conditions import Condition, check_count
from spectok_generation.diffusion import LDM, DiffusionOptions, sample_latents
from spectok_generation.masked import MaskedOptions, MaskedPrior, sample_masked
from spectok_generation.masked.sampling import own_options
from spectok_generation.priors import AutoregressivePrior, Prior
from spectok_generation.sampling import Known, SamplingOptions, sample_batch
from spectok_generation.seeds import Seed, check_seed
from spectok_generation.sharing import check_numbers, share_out

Options = SamplingOptions | DiffusionOptions
OPTIONS: dict[type[Prior], type[Options]] = {
    AutoregressivePrior: SamplingOptions,
    MaskedPrior: MaskedOptions,
    LDM: DiffusionOptions,
}
"""How images are drawn from each kind of prior that they can be drawn from."""
DRAWABLE = tuple(OPTIONS)


def draw_images(
    prior: Prior,
    tokenizer: ImageTokenizer,
    num_images: int,
    condition: Condition | None = None,
    *,
    seed: Seed = 0,
    options: Options | None = None,
    batch_size: int = 64,
    known: Known | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Draw images from a prior of any kind, divided among the processes.

    Args:
        prior: A trained prior, on the device to sample on.
        tokenizer: The tokenizer it belongs to, on the same device.
        num_images: Images in all; they are numbered from 0.
        condition: Class or text of each image, for a prior that takes one.
        seed: The only source of randomness, together with the number of the image; or one seed
            for each image, which is then the first image of that seed alone.
        options: :class:`SamplingOptions`, for a :class:`MaskedPrior` :class:`MaskedOptions`, for an
            :class:`LDM` :class:`DiffusionOptions`.
        batch_size: Images drawn at once on each process.
        known: Tokens to keep as they are; not for an :class:`LDM`.
        on_images: Called with the number of images all processes drew since the last call.

    Returns:
        Images on the CPU, about [-1, 1] (not clamped), the same on every process.

    Raises:
        InputError: If the condition or the options do not fit the prior.
    """
    check_numbers(num_images, batch_size)
    check_seed(seed, num_images)
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
    seed: Seed = 0,
    options: Options | None = None,
    known: Known | None = None,
) -> Float[Tensor, "b c h w"]:
    """Draw one batch of images on this process alone; see :func:`draw_images`.

    Args:
        prior: A trained prior.
        tokenizer: The tokenizer it belongs to, on the same device.
        numbers: The number of each image, which seeds it together with ``seed``.
        condition: Class or text of each image.
        seed: See :func:`draw_images`.
        options: See :func:`draw_images`.
        known: See :func:`draw_images`.
    """
    kind = type(prior).__name__
    if isinstance(prior, LDM):
        if isinstance(options, SamplingOptions):
            raise InputError("an LDM draws latents, not tokens; give DiffusionOptions")
        if known is not None:
            raise InputError("an LDM draws latents and cannot keep tokens; leave them out")
        latents = sample_latents(prior, numbers, condition, seed=seed, options=options)
        return decode_latents(tokenizer, latents)
    if isinstance(options, DiffusionOptions):
        raise InputError(f"a {kind} does not draw latents; give {options_of(prior).__name__}")
    given = {"seed": seed, "known": known}
    if isinstance(prior, MaskedPrior):
        masked = cast("MaskedOptions | None", options)  # which sample_masked checks
        tokens = sample_masked(prior, numbers, condition, options=masked, **given)
        return decode_tokens(tokenizer, tokens)
    if not isinstance(prior, AutoregressivePrior) or isinstance(options, MaskedOptions):
        raise InputError(f"a {kind} does not draw tokens in steps; give SamplingOptions")
    tokens = sample_batch(prior, numbers, condition, options=options, **given)
    return decode_tokens(tokenizer, tokens)


def options_of(prior: Prior) -> type[Options]:
    """Return the kind of options that say how images are drawn from a prior.

    Raises:
        InputError: If images cannot be drawn from it.
    """
    for kind, options in OPTIONS.items():
        if isinstance(prior, kind):
            return options
    raise InputError(f"images cannot be drawn from a {type(prior).__name__}")


def choose_labels(
    prior: Prior, num_images: int, wanted: int | None = None
) -> Int[Tensor, "n"] | None:
    """Return the class of each image to draw: the one asked for, or all classes in turn.

    Raises:
        InputError: If the prior does not have that class.
    """
    if wanted is None and not prior.num_classes:
        return None
    if wanted is None:
        return torch.arange(num_images) % prior.num_classes
    if not 0 <= wanted < prior.num_classes:
        known = f"0..{prior.num_classes - 1}" if prior.num_classes else "none: it is unconditional"
        raise InputError(f"class {wanted} is not one of this prior's classes ({known})")
    return torch.full((num_images,), wanted)


def make_options(prior: Prior, values: Mapping[str, Any]) -> Options:
    """Build the sampling options of a prior from the values that were given.

    Args:
        prior: A trained prior.
        values: Option -> value; None where the default applies.

    Raises:
        InputError: If the prior does not take an option, or a value is out of range.
    """
    kind = options_of(prior)
    known = [field.name for field in dataclasses.fields(kind)]
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in known:
            raise InputError(
                f"{type(prior).__name__} does not take {name}={given[name]}, only "
                f"{', '.join(known)}; leave it out"
            )
    return kind(**given)


def spelled_out(prior: Prior, options: Options) -> Options:
    """Return the same options with what the prior itself decides written down, for a record.

    Raises:
        InputError: If an option does not fit the prior.
    """
    if isinstance(prior, MaskedPrior) and isinstance(options, MaskedOptions):
        return own_options(prior, options)
    if not isinstance(prior, LDM) or not isinstance(options, DiffusionOptions):
        return options
    name, steps = prior.noise_schedule.resolve(options.scheduler, options.num_steps)
    return dataclasses.replace(options, scheduler=name, num_steps=steps)


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
