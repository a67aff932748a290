"""What the playground shows of a tokenizer: from images and tokens to pictures and words.

Every function takes one image, or its tokens, as a batch of one.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

from spectok import ImageTokenizer, TokenSpec
from spectok.errors import InputError
from spectok.evaluation.codes import level_name, running_frequencies
from spectok.evaluation.influence import influence, influence_pictures
from spectok.metrics import psnr, ssim
from spectok_generation.playground.pictures import show, show_difference

MAX_PLACES, NUM_REPLACEMENTS = 64, 4
"""Tokens whose influence is measured at once, and other values that each of them takes."""
MAX_CODES = 64
"""Codes that are drawn at once."""
GOLDEN = 0.618033988749895
"""A turn of the colour wheel by this share of it puts neighbouring numbers far apart."""
FIRST, LEFT, TOP = "the first tokens", "the left side", "the top"

Labelled = list[tuple[Image, str]]


@torch.no_grad()
def reconstruct(
    tokenizer: ImageTokenizer, images: Float[Tensor, "1 c h w"]
) -> tuple[Image, Image, Image, str]:
    """Return an image, its reconstruction, where they differ, and what was measured, in words."""
    again = tokenizer.decode(tokenizer.encode(images.to(tokenizer.device))).float().cpu()
    images, spec = images.float().cpu(), tokenizer.token_spec
    raw = 8 * images.numel()
    words = (
        f"PSNR {psnr(images, again).item():.2f} dB, SSIM {ssim(images, again).item():.3f}. "
        f"{spec.num_tokens} tokens, {spec.bits_per_image:,.0f} bits: 1/"
        f"{raw / spec.bits_per_image:,.0f} of the {raw:,} bits of its pixels."
    )
    return show(images[0]), show(again[0]), show_difference(images[0], again[0]), words


@torch.no_grad()
def encode(tokenizer: ImageTokenizer, images: Float[Tensor, "1 c h w"]) -> Int[Tensor, "1 t"]:
    """Return the tokens of an image, on the device of the tokenizer."""
    return tokenizer.encode(images.to(tokenizer.device))


@torch.no_grad()
def decode(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "1 t"], num_tokens: int | None = None
) -> Image:
    """Return the picture that tokens, or the first of them, stand for."""
    return show(tokenizer.decode(indices, num_tokens=num_tokens)[0])


# -- tokens ----------------------------------------------------------------------------------------


def token_tables(spec: TokenSpec, indices: Int[Tensor, "1 t"]) -> str:
    """Return the tokens of an image as HTML: one table per level, equal numbers in one colour."""
    parts = []
    for number, (level, values) in enumerate(zip(spec.levels, spec.unflatten(indices.cpu()))):
        title = f"Level {number}" if spec.num_levels > 1 else "Tokens"
        grid = len(level.shape) == 2
        columns = level.shape[1] if grid else math.ceil(math.sqrt(level.num_tokens))
        layout = "×".join(map(str, level.shape)) if grid else f"a list of {level.num_tokens}"
        cells = [_cell(value) for value in values.flatten().tolist()]
        rows = [
            f"<tr>{''.join(cells[start : start + columns])}</tr>"
            for start in range(0, len(cells), columns)
        ]
        words = f"{title}: {layout}, each one of {level.vocab_size:,} values"
        parts.append(
            f"<figure><figcaption>{html.escape(words)}</figcaption>"
            f"<table class='tokens'>{''.join(rows)}</table></figure>"
        )
    return f"<div class='levels'>{''.join(parts)}</div>"


def _cell(value: int) -> str:
    hue = round(360 * (value * GOLDEN % 1))
    return f"<td style='background: hsl({hue} 65% 82%)'>{value}</td>"


# -- prefixes --------------------------------------------------------------------------------------


def prefix_lengths(spec: TokenSpec) -> list[int]:
    """Return the numbers of leading tokens that decode to an image on their own."""
    return [length for length in spec.decodable_prefixes if length]


def why_no_prefix(spec: TokenSpec) -> str:
    """Return why no start of the tokens decodes on its own; empty if some does."""
    if len(prefix_lengths(spec)) > 1:
        return ""
    levels = "it has one level" if spec.num_levels == 1 else "its levels do not follow one another"
    return (
        f"This tokenizer decodes all of its tokens or none: {levels}, and it was not trained to "
        f"decode the first of them alone. Try one whose levels do, a tree or a residual one "
        f"(`tokenizer.token_order: level`), or one that was trained with "
        f"`tokenizer.prefix_probability`."
    )


def prefix_strip(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "1 t"], count: int = 8
) -> Labelled:
    """Return an image decoded from more and more of its tokens, with how many each time.

    Args:
        tokenizer: Its first tokens decode.
        indices: Tokens of one image.
        count: Pictures, at most.
    """
    lengths = _spread(prefix_lengths(tokenizer.token_spec), count)
    return [(decode(tokenizer, indices, k), f"{k} tokens") for k in lengths]


# -- influence -------------------------------------------------------------------------------------


def influences(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "1 t"], level: int = 0
) -> tuple[Labelled, str]:
    """Draw which pixels each token of a level is about; brighter ones change more.

    Args:
        tokenizer: In eval mode.
        indices: Tokens of one image.
        level: Which level; of more than :data:`MAX_PLACES` tokens some are chosen, evenly spread.

    Returns:
        One picture per token with its position, and what is seen, in words.
    """
    spec = tokenizer.token_spec
    all_places = [place for place, owner in enumerate(spec.level_of_place) if owner == level]
    places = _spread(all_places, MAX_PLACES)
    change = influence(tokenizer, indices, places, NUM_REPLACEMENTS).float().cpu()
    pictures = [show(picture) for picture in influence_pictures(change)[0]]
    # a pixel counts as touched if it changes by a tenth of what the strongest pixel does
    touched = (change > 0.1 * change.amax((2, 3), keepdim=True)).float().mean().item()
    names = [f"token {spec.position_of_place[place]}" for place in places]
    some = f", {len(places)} of them shown" if len(places) < len(all_places) else ""
    words = (
        f"{len(all_places)} tokens{some}, {NUM_REPLACEMENTS} other values each: on average a token "
        f"moves {100 * touched:.0f} % of the pixels by a tenth or more of its strongest change."
    )
    return list(zip(pictures, names)), words


# -- swapping --------------------------------------------------------------------------------------


def swap_choices(spec: TokenSpec) -> list[str]:
    """Return the ways in which tokens can be taken from another image."""
    is_grid = all(len(level.shape) == 2 for level in spec.levels)
    choices = [LEFT, TOP, FIRST] if is_grid else [FIRST]
    if spec.num_levels > 1:
        choices += [f"level {number}" for number in range(spec.num_levels)]
    return choices


def places_to_swap(spec: TokenSpec, choice: str, share: float) -> Bool[Tensor, "t"]:
    """Return which tokens are taken from the other image.

    Args:
        spec: Layout of the tokens.
        choice: One of :func:`swap_choices`.
        share: How large a part of the tokens, from 0 to 1; a level is always taken whole.

    Raises:
        InputError: If the choice is none of these, or the share is not within 0 to 1.
    """
    if choice not in swap_choices(spec):
        raise InputError(f"{choice!r} is none of {', '.join(swap_choices(spec))}")
    if not 0 <= share <= 1:
        raise InputError(f"share {share} is not within 0 to 1")
    if choice == FIRST:
        return torch.arange(spec.num_tokens) < round(share * spec.num_tokens)
    parts = []
    for number, level in enumerate(spec.levels):
        if choice in (LEFT, TOP):
            size = level.shape[1 if choice == LEFT else 0]
            line = torch.arange(size) < round(share * size)
            taken = (line if choice == LEFT else line[:, None]).expand(level.shape)
        else:
            taken = torch.full(level.shape, choice == f"level {number}")
        parts.append(taken[None])
    return spec.flatten(parts)[0]


def swap(
    tokenizer: ImageTokenizer,
    first: Int[Tensor, "1 t"],
    second: Int[Tensor, "1 t"],
    places: Bool[Tensor, "t"],
) -> Image:
    """Return the picture of the first image's tokens with some of the second's among them."""
    return decode(tokenizer, torch.where(places.to(first.device), second, first))


# -- codes -----------------------------------------------------------------------------------------


def code_count(spec: TokenSpec, place: int) -> int:
    """Return how many codes there are to choose from at a place.

    Raises:
        InputError: If there is no such place.
    """
    if not 0 <= place < spec.num_tokens:
        raise InputError(f"token {place} is not one of 0..{spec.num_tokens - 1}")
    return spec.vocab_sizes[place]


@torch.no_grad()
def draw_codes(
    tokenizer: ImageTokenizer, indices: Int[Tensor, "1 t"], place: int, start: int = 0
) -> Labelled:
    """Draw an image with each code in turn at one place, and its other tokens as they are.

    Args:
        tokenizer: In eval mode.
        indices: Tokens of one image.
        place: Which token is replaced.
        start: First code; :data:`MAX_CODES` are drawn.

    Returns:
        One picture per code with its number, which says where it is the image's own.

    Raises:
        InputError: If there is no such place or no such code.
    """
    count, own = code_count(tokenizer.token_spec, place), int(indices[0, place])
    if not 0 <= start < count:
        raise InputError(f"code {start} is not one of 0..{count - 1}")
    codes = torch.arange(start, min(start + MAX_CODES, count), device=indices.device)
    replaced = indices.repeat(len(codes), 1)
    replaced[:, place] = codes
    decoded = tokenizer.decode(replaced)
    names = [f"{code} (its own)" if code == own else str(code) for code in codes.tolist()]
    return [(show(image), name) for image, name in zip(decoded, names)]


def describe_codebooks(tokenizer: ImageTokenizer) -> str:
    """Return one line per level on its codes, and how many of them training still used."""
    spec, lines = tokenizer.token_spec, []
    for number, level in enumerate(spec.levels):
        kind = {
            "shared": "one codebook for all positions",
            "position": f"{level.num_codebooks} codebooks, each for its own positions",
            "path": "a codebook for each code of the level above",
        }[level.codebook]
        name = level_name(spec, number).replace("level ", "Level ").replace("the c", "The c")
        lines.append(f"- {name}: {level.vocab_size:,} values, {kind}.")
    for name, frequency in running_frequencies(tokenizer):
        used = (frequency * frequency.shape[-1] > 0.1).float().mean().item()
        lines.append(
            f"- `{name.removesuffix('.frequency')}`: {100 * used:.1f} % of {frequency.numel():,} "
            f"codes were chosen at least a tenth as often as the mean at the end of training."
        )
    return "\n".join(lines)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return at most so many of some values, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
