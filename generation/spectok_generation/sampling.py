"""One sampler for every autoregressive prior.

Image ``i`` has its own stream of uniform numbers, seeded by ``(seed, i)``, which select tokens
through the inverse of the cumulative distribution in float64. An image therefore does not depend on
its batch or on the number of processes, up to the rounding of batched matrix products (about 1e-6
in the logits, which changes about one token in a million).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok import TokenSpec
from spectok.errors import InputError, TokenError
from spectok_generation.conditions import Condition, check_count
from spectok_generation.guidance import Predictor, check_scale
from spectok_generation.priors.base import AutoregressivePrior, Prior
from spectok_generation.seeds import Seed, check_seed, streams
from spectok_generation.sharing import check_numbers, share_out

LOWEST_TEMPERATURE = 1e-6
"""Logits divided by less than that may overflow."""
OnToken = Callable[[Tensor, int], None]
NOT_FINITE = (
    "what the prior computes is not finite: its weights are damaged, or its type {} overflows; "
    "load it in float32"
)


@dataclass(frozen=True, eq=False)
class Known:
    """Tokens that the sampler keeps while it draws the others.

    Indexed by image, like a tensor.

    Args:
        indices: Tokens of each image; valid where they are kept, arbitrary elsewhere.
        keep: Which of them to keep.
        file: File that the tokens are of, if they are of one.
        rows: Row of each image in that file.
    """

    indices: Int[Tensor, "n t"]
    keep: Bool[Tensor, "n t"]
    file: str | None = None
    rows: Int[Tensor, "n"] | None = None

    @classmethod
    def prefix(cls, indices: Int[Tensor, "n k"], num_tokens: int) -> Known:
        """Keep the first k tokens of each image, and leave the rest to be drawn."""
        missing = num_tokens - indices.shape[1]
        keep = torch.arange(num_tokens) < indices.shape[1]
        return cls(F.pad(indices, (0, max(missing, 0))), keep.expand(len(indices), -1))

    def check(self, count: int, spec: TokenSpec) -> None:
        """Check that the tokens fit the images to be drawn.

        Args:
            count: Number of images.
            spec: Layout of the tokens.

        Raises:
            TokenError: If the shapes are wrong, the mask is not bool, or a kept token is out of
                range; names it.
        """
        if self.keep.dtype != torch.bool:
            raise TokenError(f"the mask of known tokens is {self.keep.dtype}; it must be bool")
        shape = (count, spec.num_tokens)
        if self.indices.shape != shape or self.keep.shape != shape:
            raise TokenError(
                f"known tokens of shape {tuple(self.indices.shape)} with a mask of shape "
                f"{tuple(self.keep.shape)}; both must be {shape}"
            )
        spec.validate(self.indices.masked_fill(~self.keep.to(self.indices.device), 0))

    def __getitem__(self, rows: Any) -> Known:
        taken = None if self.rows is None else self.rows[rows]
        return Known(self.indices[rows], self.keep[rows], self.file, taken)

    def describe(self, number: int) -> dict[str, Any]:
        """Return which tokens of an image are kept, in the words of ``spectok sample``.

        Returns:
            ``keep``, the places as ranges such as ``"0:8,16:24"``; and, of tokens from a file, its
            name as ``complete`` and the image's ``row``.
        """
        edges = F.pad(self.keep[number].int(), (1, 1)).diff().nonzero().flatten().tolist()
        ranges = (f"{first}:{last}" for first, last in zip(edges[::2], edges[1::2]))
        told: dict[str, Any] = {"keep": ",".join(ranges)}
        if self.file is None or self.rows is None:
            return told
        return {"complete": self.file, "row": int(self.rows[number]), **told}


@dataclass(frozen=True)
class SamplingOptions:
    """How the distribution of each token is sharpened before sampling.

    Args:
        temperature: Divides the logits; values below 1 favour likely codes.
        top_k: Keep only the k most likely codes; of equally likely ones, those of lowest index.
            None: all.
        top_p: Then keep the smallest set of most likely codes with total probability p. None: all.
        guidance: Scale of classifier-free guidance (Ho and Salimans 2022); 1 is the conditional
            model itself.
        guidance_interval: Fractions of the sequence at which guidance begins and ends
            (Kynkäänniemi et al. 2024, there for noise levels); outside this interval the
            unconditional model is not run.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not LOWEST_TEMPERATURE <= self.temperature < math.inf:
            raise InputError(
                f"temperature {self.temperature} must be at least {LOWEST_TEMPERATURE} and finite; "
                f"for the most likely codes use top_k=1"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} must be above 0 and at most 1")
        check_scale("guidance", self.guidance)
        begin, end = self.guidance_interval
        if not 0 <= begin < end <= 1:
            raise InputError(
                f"guidance_interval {begin}..{end} must be two rising fractions of the "
                f"sequence within 0..1"
            )


def sample_tokens(
    prior: AutoregressivePrior,
    num_images: int,
    condition: Condition | None = None,
    *,
    seed: Seed = 0,
    options: SamplingOptions | None = None,
    batch_size: int = 64,
    known: Known | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Int[Tensor, "n t"]:
    """Draw the tokens of many images, divided among the processes.

    Args:
        prior: A trained prior, on the device to sample on.
        num_images: Images in all; they are numbered from 0.
        condition: Class or text of each image, for a prior that takes one.
        seed: The only source of randomness, together with the number of the image; or one seed
            for each image.
        options: Temperature and the like.
        batch_size: Images drawn at once on each process.
        known: Tokens to keep as they are.
        on_images: Called with the number of images all processes drew since the last call.

    Returns:
        int64 tokens on the CPU, the same on every process.
    """
    check_numbers(num_images, batch_size)
    check_seed(seed, num_images)
    if condition is not None:
        check_count(condition, num_images)
    if known is not None:
        known.check(num_images, prior.token_spec)

    def draw(numbers: list[int]) -> Tensor:
        chosen = condition[numbers] if condition is not None else None
        given = known[numbers] if known is not None else None
        return sample_batch(prior, numbers, chosen, seed=seed, options=options, known=given)

    tokens = torch.zeros(num_images, prior.token_spec.num_tokens, dtype=torch.int64)
    return share_out(draw, tokens, batch_size, prior.device, on_images)


@torch.no_grad()
def sample_batch(
    prior: AutoregressivePrior,
    numbers: Sequence[int],
    condition: Condition | None = None,
    *,
    seed: Seed = 0,
    options: SamplingOptions | None = None,
    known: Known | None = None,
    on_token: OnToken | None = None,
) -> Int[Tensor, "b t"]:
    """Draw the tokens of one batch of images, place by place.

    Args:
        prior: A trained prior; in eval mode while it draws.
        numbers: The number of each image, which seeds it together with ``seed``.
        condition: Class or text of each image.
        seed: See :func:`sample_tokens`.
        options: Temperature and the like.
        known: Tokens to keep as they are; a place is drawn given all places before it.
        on_token: Called as ``on_token(indices, k)`` once the first k tokens are known.

    Raises:
        InputError: If the condition or the guidance does not fit the prior, or what it computes is
            not finite.
        TokenError: If known tokens do not fit the spec.
    """
    spec, batch = prior.token_spec, len(numbers)
    check_numbers(batch)
    if known is None:
        known = Known.prefix(torch.zeros(batch, 0, dtype=torch.int64), spec.num_tokens)
    known.check(batch, spec)
    indices, keep = known.indices.to(prior.device).clone(), known.keep.to(prior.device)
    needed = (
        (~known.keep).any(0).tolist()
    )  # once, on the CPU: asking the GPU at each place would stall
    uniforms = torch.stack([image_uniforms(*s, spec.num_tokens) for s in streams(seed, numbers)])
    if prior.device.type != "mps":  # which has no float64; see draw_tokens
        uniforms = uniforms.to(prior.device)
    options = options or SamplingOptions()
    predictor = Predictor(
        prior, condition, batch, scale=options.guidance, interval=options.guidance_interval
    )
    finite = torch.ones((), dtype=torch.bool, device=prior.device)
    with evaluating(prior):
        for place in range(spec.num_tokens):
            if needed[place]:
                logits = predictor.logits(indices[:, :place])
                finite &= logits.amax(-1).isfinite().all()
                drawn = draw_tokens(logits, uniforms[:, place], options)
                indices[:, place] = torch.where(keep[:, place], indices[:, place], drawn)
            if on_token is not None:
                on_token(indices, place + 1)
    if not finite:  # asked once: asking at each place would wait for the device
        raise InputError(NOT_FINITE.format(prior.dtype))
    return indices


@contextlib.contextmanager
def evaluating(prior: Prior) -> Iterator[None]:
    """Put a prior into eval mode for the duration of the context."""
    was_training = prior.training
    prior.eval()
    try:
        yield
    finally:
        prior.train(was_training)


def image_uniforms(seed: int, number: int, count: int) -> Float[Tensor, "count"]:
    """Return the uniform float64 numbers in [0, 1) of one image.

    Raises:
        InputError: If the seed or the number is negative.
    """
    streams(seed, [number])
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, number))))
    return torch.from_numpy(stream.random(count))


def draw_tokens(
    logits: Float[Tensor, "b v"], uniforms: Float[Tensor, "b"], options: SamplingOptions
) -> Int[Tensor, "b"]:
    """Draw one token per row: the first whose cumulative probability exceeds the uniform number.

    Apple's MPS has no float64: there the logits are read back, and tokens drawn on the CPU.
    """
    if logits.device.type == "mps":
        return draw_tokens(logits.cpu(), uniforms, options).to(logits.device)
    logits = logits.double() / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[1]:
        smallest = logits.topk(options.top_k).values[:, -1:]
        larger, equal = logits > smallest, logits == smallest
        places = options.top_k - larger.sum(-1, keepdim=True)  # for ties, lowest index first
        kept = larger | (equal & (equal.cumsum(-1) <= places))
        logits = logits.masked_fill(~kept, -torch.inf)
    probs = logits.softmax(-1)
    if options.top_p is not None:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # total probability of the likelier codes
        kept = torch.where(before < options.top_p, ordered, 0.0)
        probs = torch.zeros_like(probs).scatter(1, order, kept)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    below = (cumulative <= uniforms[:, None] * total).sum(-1)
    last = (cumulative < total).sum(-1)  # never beyond the last code with any probability
    return torch.minimum(below, last)
