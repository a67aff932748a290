"""How close a reconstruction is, and how much of its codebooks a tokenizer uses.

All image metrics follow one protocol: images in [-1, 1] are clamped and rounded to 8 bits,
compared, and reduced to one number per image; the number for a data set is the plain mean over its
images. It therefore does not depend on how images are split into batches.

A metric is a function of type :data:`ImageMetric` or, if it is defined only for a set of images (a
distance between distributions), a subclass of :class:`SetMetric`. A plugin registers metrics of
both kinds with ``spectok_metrics``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from spectok.errors import InputError
from spectok.images import to_uint8
from spectok.quantizers import perplexity
from spectok.token_spec import TokenSpec

ImageMetric = Callable[[Tensor, Tensor], Tensor]
"""``(images, reconstruction) -> (B,)``, both (B, C, H, W) in [-1, 1]."""


class SetMetric(ABC):
    """A number for a whole set of images. One object measures one set, in batches of any size."""

    @abstractmethod
    def add(self, images: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Args:
            images: (B, C, H, W) in [-1, 1].
            reconstruction: The same images, decoded; may go beyond [-1, 1].
            indices: (B, T), the tokens that the reconstruction was decoded from.
        """

    @abstractmethod
    def result(self) -> Any:
        """Return the result, in plain JSON types."""


SSIM_WINDOW = 7  # pixels
TWIN_DISTANCE = 1e-3  # of the codes' spread
FAR = 100.0  # times as far from the middle as nine tenths of the codes
TWIN_ROWS = 1024  # codes compared with all others at once
PSNR_OF_EQUALS = 100.0  # dB; a mean over images must stay finite


def psnr(
    images: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b"]:
    """Return the peak signal-to-noise ratio of each image, in dB; at most 100, for equal images.

    Args:
        images: Originals in [-1, 1].
        reconstruction: Their reconstructions; values outside [-1, 1] are clamped.
    """
    return (-10 * torch.log10(mse(images, reconstruction))).clamp(max=PSNR_OF_EQUALS)


def ssim(
    images: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b"]:
    """Return the structural similarity of each image (Wang et al. 2004); 1 for equal images.

    Uniform windows of 7×7 pixels that lie inside the image, with population covariances, as
    scikit-image computes it with ``use_sample_covariance=False``. The original Gaussian window, 11
    pixels wide, would cross the border of small images almost everywhere.

    Args:
        images: Originals in [-1, 1].
        reconstruction: Their reconstructions; values outside [-1, 1] are clamped.

    Raises:
        InputError: If the images are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise InputError(
            f"images of {tuple(images.shape[-2:])} pixels are smaller than the window of SSIM, "
            f"{SSIM_WINDOW}; leave ssim out"
        )
    originals, others = _eight_bits(images, reconstruction)
    _, maps = structural_similarity_index_measure(
        others,
        originals,
        gaussian_kernel=False,
        kernel_size=SSIM_WINDOW,
        data_range=255.0,
        reduction="none",
        return_full_image=True,
    )
    margin = SSIM_WINDOW // 2
    inside = maps[..., margin:-margin, margin:-margin]  # type: ignore[index]
    return inside.flatten(1).mean(1)


def mse(
    images: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b"]:
    """Return the mean squared error of each image, with pixels scaled to [0, 1].

    Args:
        images: Originals in [-1, 1].
        reconstruction: Their reconstructions; values outside [-1, 1] are clamped.
    """
    originals, others = _eight_bits(images, reconstruction)
    return ((originals - others) / 255).square().flatten(1).mean(1)


class ImageMean(SetMetric):
    """The mean of an image metric over a set.

    Args:
        function: Returns one number per image.
    """

    def __init__(self, function: ImageMetric):
        self._function, self._values = function, [torch.zeros(0)]

    def add(self, images: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Measure the images of a batch."""
        self._values.append(self._function(images, reconstruction).cpu())

    def values(self) -> list[float]:
        """Return the number of each image, in the order they were added."""
        return torch.cat(self._values).tolist()

    def result(self) -> float:
        """Return the mean."""
        return float(torch.cat(self._values).double().mean())


def codebook_statistics(
    spec: TokenSpec,
    counts: Int[Tensor, "n"],
    tables: Sequence[Float[Tensor, "_ _ _"] | None] | None = None,
) -> dict[str, Any]:
    """Return how much of its codebooks a tokenizer uses on a data set.

    ``codebook_usage`` is the share of all codes that are chosen at least once. ``perplexity`` is
    the exponential of the entropy of a codebook's code frequencies, averaged over codebooks with
    their numbers of tokens as weights. ``distinct_usage`` and ``distinct_perplexity`` are the same
    after codes that are all but equal have been counted as one (see :func:`find_twins`): codes that
    a quantizer has just copied would otherwise look like codes in use. They are None where a level
    does not store its codes as vectors. ``levels`` holds all four for each level.

    Args:
        spec: Layout of the tokens.
        counts: See :func:`count_codes`.
        tables: The codes of each level; None: those that are not known.
    """
    by_level = split_by_codebook(spec, counts.double())
    merged: list[Tensor | None] = [None] * len(by_level)
    for number, table in enumerate(tables or ()):
        if table is not None:
            twins = find_twins(table.detach().cpu())
            merged[number] = torch.zeros_like(by_level[number]).scatter_add_(
                1, twins, by_level[number]
            )
    levels = [
        dict(zip(("codebook_usage", "perplexity"), _usage(level)))
        | dict(zip(("distinct_usage", "distinct_perplexity"), _usage(distinct)))
        for level, distinct in zip(by_level, merged)
    ]
    sizes = [level.numel() for level in by_level]
    tokens = [float(level.sum()) for level in by_level]
    result: dict[str, Any] = {
        "codebook_usage": _mean([level["codebook_usage"] for level in levels], sizes),
        "perplexity": _mean([level["perplexity"] for level in levels], tokens),
        "distinct_usage": _mean([level["distinct_usage"] for level in levels], sizes),
        "distinct_perplexity": _mean([level["distinct_perplexity"] for level in levels], tokens),
    }
    return result | {"levels": levels}


def are_astray(codebook: Float[Tensor, "k d"]) -> Bool[Tensor, "k"]:
    """Return which codes lie :data:`FAR` times farther from the middle than nine tenths of them.

    The middle is the median of each dimension.
    """
    distances = (codebook - codebook.median(0).values).norm(dim=-1)
    reach = distances.quantile(0.9, interpolation="lower")
    return (distances > FAR * reach) & (reach > 0)


def find_twins(codes: Float[Tensor, "g k d"]) -> Int[Tensor, "g k"]:
    """Return for each code the number of the first code that it is a twin of, or its own.

    Two codes of a codebook are twins if they lie closer together than a thousandth of the root mean
    square distance of the codebook's codes from their mean; so are codes that a chain of twins
    connects. Codes that went astray do not count in that mean, or one of them would make twins of
    all others.

    Args:
        codes: The vectors of G codebooks.
    """
    found = []
    for codebook in codes.double():
        common = codebook[~are_astray(codebook)]
        spread = (common - common.mean(0)).square().sum(-1).mean().sqrt()
        pairs = []
        for first, rows in enumerate(codebook.split(TWIN_ROWS)):
            near = torch.cdist(rows, codebook, compute_mode="donot_use_mm_for_euclid_dist")
            row, other = (near <= TWIN_DISTANCE * spread).nonzero(as_tuple=True)
            pairs.append(torch.stack([row + first * TWIN_ROWS, other]))
        row, other = torch.cat(pairs, dim=1)
        first_twin, before = torch.arange(len(codebook)), None
        while before is None or not torch.equal(first_twin, before):
            before = first_twin
            first_twin = before.scatter_reduce(0, row, before[other], "amin")
        found.append(first_twin)
    return torch.stack(found)


def _usage(counts: Tensor | None) -> tuple[float | None, float | None]:
    """Return the usage and the perplexity of the codebooks (G, K) of a level."""
    if counts is None:
        return None, None
    tokens = counts.sum(1)
    mean = (perplexity(counts) * tokens).sum() / tokens.sum().clamp_min(1)
    return float(counts.gt(0).double().mean()), float(mean)


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Return the weighted mean; None if a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(value * weight for value, weight in zip(known, weights)) / max(1.0, sum(weights))


def count_codes(spec: TokenSpec, indices: Int[Tensor, "b t"]) -> Int[Tensor, "n"]:
    """Return how often each of the ``spec.num_codes`` codes is chosen."""
    return torch.bincount(spec.code_ids(indices).flatten(), minlength=spec.num_codes)


def split_by_codebook(spec: TokenSpec, counts: Num[Tensor, "n"]) -> list[Num[Tensor, "g k"]]:
    """Split the counts of :func:`count_codes` by level, with one row per codebook of the level."""
    first = spec.code_ids(torch.zeros(1, spec.num_tokens, dtype=torch.int64))[0].tolist()
    starts = [  # index 0 of a level's first codebook has the smallest number in the level
        min(code for code, owner in zip(first, spec.level_of_place) if owner == level)
        for level in range(spec.num_levels)
    ]
    ends = [*starts[1:], spec.num_codes]
    return [
        counts[start:end].view(-1, level.vocab_size)
        for level, start, end in zip(spec.levels, starts, ends)
    ]


def _eight_bits(images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as float64 from 0 to 255, rounded as when saved."""
    if images.shape != reconstruction.shape:
        raise InputError(
            f"images of shape {tuple(images.shape)} and reconstructions of shape "
            f"{tuple(reconstruction.shape)} differ; compare images of one size"
        )
    return to_uint8(images).double(), to_uint8(reconstruction).double()
