"""Draw the tokens of many places at once, in a few steps (Chang et al. 2022, section 3.2).

Image ``i`` has its own stream of uniform numbers, seeded by ``(seed, i)``, as with every other
prior; see :mod:`spectok_generation.sampling`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.device import constant, send
from spectok.errors import InputError, shown
from spectok_generation.conditions import Condition, join
from spectok_generation.guidance import check_can_guide, check_scale
from spectok_generation.masked.base import MaskedPrior, too_few_steps
from spectok_generation.masked.masking import hidden_share, ranks
from spectok_generation.priors.codebooks import at_least_float32
from spectok_generation.sampling import (
    NOT_FINITE,
    Known,
    SamplingOptions,
    draw_tokens,
    evaluating,
    image_uniforms,
)
from spectok_generation.seeds import Seed, streams
from spectok_generation.sharing import check_numbers, is_count

DRAW_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}  # of float64 probabilities held at once
Predict = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class MaskedOptions(SamplingOptions):
    """How tokens are drawn, and in which order.

    Args:
        num_steps: Steps K of drawing, of which there are never more than tokens of a level. None:
            the prior's own. An image of which fewer tokens are drawn is done before the last.
        choice_temperature: Tokens of high probability are settled first; this is the scale of
            Gumbel noise on their log-probabilities, which falls linearly to 0 at the last step. 0:
            always the likeliest; large: a random order. None: the prior's own.
        guidance_interval: Fractions of the steps at which guidance begins and ends.
    """

    num_steps: int | None = None
    choice_temperature: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps is not None and not is_count(self.num_steps):
            raise InputError(
                f"num_steps {shown(self.num_steps)} must be a whole number, at least 1"
            )
        if self.choice_temperature is not None:
            check_scale("choice_temperature", self.choice_temperature)


def own_options(prior: MaskedPrior, options: MaskedOptions | None) -> MaskedOptions:
    """Return the same options with those of the prior where none are given.

    There are no more steps than can settle a token each: those of the level with the most tokens,
    and one for each level that waits for another.

    Raises:
        InputError: If the steps do not suffice for the layout of the tokens.
    """
    given = options or MaskedOptions()
    steps = prior.num_steps if given.num_steps is None else given.num_steps
    if steps < len(prior.masking.depths):
        raise InputError(too_few_steps(steps, prior.masking))
    depths = prior.masking.depths
    steps = min(steps, max(map(len, depths)) + len(depths) - 1)
    choice = given.choice_temperature
    return dataclasses.replace(
        given,
        num_steps=steps,
        choice_temperature=prior.choice_temperature if choice is None else choice,
    )


@torch.no_grad()
def sample_masked(
    prior: MaskedPrior,
    numbers: Sequence[int],
    condition: Condition | None = None,
    *,
    seed: Seed = 0,
    options: MaskedOptions | None = None,
    known: Known | None = None,
) -> Int[Tensor, "b t"]:
    """Draw the tokens of one batch of images, many places at once.

    In each step a token is drawn for every place that can be predicted. Those of the highest
    confidence, which is the log-probability of the token drawn plus noise, are settled; the others
    are drawn again in the next step, given more. Of the N tokens to draw, at most ⌊cos(π k / 2K) N⌋
    are still open after step k of K, and at least one is settled in each step. The paper rounds up,
    its released code down.

    Where places wait for others (:class:`~spectok_generation.masked.masking.Masking`), those of
    each depth have a schedule of their own, of K less one step for each depth that waits. A kept
    token that waits for one that is drawn is seen only once that is known.

    Args:
        prior: A trained prior; in eval mode while it draws.
        numbers: The number of each image, which seeds it together with ``seed``.
        condition: Class or text of each image.
        seed: The only source of randomness, together with the number of the image; or one seed
            for each image of the whole sample.
        options: Steps, temperatures and the like.
        known: Tokens to keep as they are, wherever they are; all others are drawn given them.

    Returns:
        int64 tokens on the device of the prior.

    Raises:
        InputError: If the condition or the options do not fit the prior, or what it computes is
            not finite.
        TokenError: If known tokens do not fit the spec.
    """
    if not isinstance(prior, MaskedPrior):
        raise InputError(f"a {type(prior).__name__} does not draw in steps; use draw_images")
    if options is not None and not isinstance(options, MaskedOptions):
        raise InputError(f"a {type(prior).__name__} draws tokens in steps; give MaskedOptions")
    spec, batch = prior.token_spec, len(numbers)
    check_numbers(batch)
    if known is None:
        known = Known.prefix(torch.zeros(batch, 0, dtype=torch.int64), spec.num_tokens)
    known.check(batch, spec)
    options = own_options(prior, options)
    assert options.num_steps is not None
    assert options.choice_temperature is not None
    depths, device = prior.masking.depths, prior.device
    rounds = options.num_steps - len(depths) + 1
    open_then = plan(known.keep.cpu(), depths, rounds)
    num_steps = _count_steps(open_then)
    uniforms, noise = _draw_numbers(seed, numbers, (num_steps, 2, spec.num_tokens), device)
    open_then = send(open_then, device)
    predict = _predictor(prior, condition, batch, options)
    indices, settled = known.indices.to(device).clone(), known.keep.to(device).clone()
    finite = torch.ones((), dtype=torch.bool, device=device)
    with evaluating(prior):
        for step in range(num_steps):
            visible = prior.masking.visible(settled)
            logits = predict(indices, visible, step)
            finite &= logits.amax(-1).isfinite().all()
            drawn = _draw(logits, uniforms[step], options)
            scale = options.choice_temperature * max(0.0, 1 - (step + 1) / rounds)
            log_probs = logits.log_softmax(-1).gather(2, drawn[:, :, None]).squeeze(2)
            confidence = log_probs + scale * noise[step].to(log_probs.dtype)
            can_be_drawn = ~settled & prior.masking.ready(visible)
            still_open = open_then[min(step + 1, rounds)]
            chosen = choose(confidence, can_be_drawn, settled, still_open, depths)
            indices, settled = torch.where(chosen, drawn, indices), settled | chosen
    if not finite:  # asked once: asking at each step would wait for the device
        raise InputError(NOT_FINITE.format(prior.dtype))
    return indices


def plan(
    keep: Bool[Tensor, "b t"], depths: Sequence[tuple[int, ...]], rounds: int
) -> Int[Tensor, "k d b"]:
    """Return how many tokens of each depth are at most open before the first step and after each.

    Args:
        keep: Which tokens are not drawn.
        depths: Places of each depth.
        rounds: Steps after which none is open.
    """
    start = torch.stack([(~keep[:, list(places)]).sum(1) for places in depths])
    found = [start]
    for step in range(1, rounds + 1):
        share = hidden_share(torch.tensor(step / rounds, dtype=torch.float64))
        wanted = (start * (0.0 if step == rounds else share)).floor().long()
        found.append(torch.minimum(wanted, found[-1] - 1).clamp(min=0))
    return torch.stack(found)


def choose(
    confidence: Float[Tensor, "b t"],
    can_be_drawn: Bool[Tensor, "b t"],
    settled: Bool[Tensor, "b t"],
    still_open: Int[Tensor, "d b"],
    depths: Sequence[tuple[int, ...]],
) -> Bool[Tensor, "b t"]:
    """Return which of the tokens just drawn are settled: at each depth the most confident.

    Args:
        confidence: Of the token drawn at each place.
        can_be_drawn: Which places can be settled at all.
        settled: Which are settled already.
        still_open: How many of each depth are to stay open, at most.
        depths: Places of each depth.
    """
    chosen = torch.zeros_like(settled)
    for places, remaining in zip(depths, still_open):
        columns = constant(places, settled.device)
        possible = can_be_drawn[:, columns]
        order = ranks(confidence[:, columns].masked_fill(~possible, -torch.inf), descending=True)
        count = (~settled[:, columns]).sum(1) - remaining
        chosen[:, columns] = possible & (order < count[:, None])
    return chosen


def _count_steps(open_then: Int[Tensor, "k d b"]) -> int:
    """Return the steps until nothing is open, in any image of the batch.

    Each depth with something to draw may have to wait for one more step for the depth above.
    """
    lasting = int((open_then.amax((1, 2)) > 0).sum())
    drawn_depths = int((open_then[0].amax(1) > 0).sum())
    return lasting + max(0, drawn_depths - 1)


def _draw_numbers(
    seed: Seed, numbers: Sequence[int], shape: tuple[int, int, int], device: torch.device
) -> tuple[Float[Tensor, "k b t"], Float[Tensor, "k b t"]]:
    """Return the uniform float64 numbers of all images, and standard Gumbel noise in float32."""
    draws = [image_uniforms(*s, math.prod(shape)).view(shape) for s in streams(seed, numbers)]
    uniforms, others = torch.stack(draws, dim=1).unbind(2)  # (K, B, 2, T) -> (K, B, T) each
    smallest = torch.finfo(others.dtype).tiny  # in place of exactly 0
    noise = -(-others.clamp(min=smallest).log()).log()
    if device.type != "mps":  # which has no float64; see draw_tokens
        uniforms = uniforms.to(device)
    return uniforms, noise.float().to(device)


def _draw(
    logits: Float[Tensor, "b t v"], uniforms: Float[Tensor, "b t"], options: SamplingOptions
) -> Int[Tensor, "b t"]:
    """Draw a token for every place, in parts of bounded size."""
    rows, numbers = logits.flatten(0, 1), uniforms.flatten()
    budget = DRAW_BYTES.get(logits.device.type, DRAW_BYTES["cuda"])
    size = max(1, budget // (8 * rows.shape[1]))
    parts = zip(rows.split(size), numbers.split(size))
    return torch.cat([draw_tokens(*part, options) for part in parts]).view(logits.shape[:2])


def _predictor(
    prior: MaskedPrior, condition: Condition | None, batch: int, options: MaskedOptions
) -> Predict:
    """Return ``(indices, visible, step) -> logits``, guided in the steps of the interval."""
    prior.check_can_omit(condition)
    given = prior.check_condition(condition, batch)

    def conditional(indices: Tensor, visible: Tensor, step: int) -> Tensor:
        return at_least_float32(prior.logits(indices, visible, given))

    if options.guidance == 1.0:
        return conditional
    check_can_guide(prior, condition, options.guidance)
    both = join(given, prior.null_condition(batch))
    sizes = constant(prior.token_spec.vocab_sizes, prior.device)
    codes = torch.arange(prior.token_spec.max_vocab_size, device=prior.device)
    beyond = codes >= sizes[:, None]
    assert options.num_steps is not None
    guided = range(*(round(share * options.num_steps) for share in options.guidance_interval))

    def predict(indices: Tensor, visible: Tensor, step: int) -> Tensor:
        if step not in guided:
            return conditional(indices, visible, step)
        logits = prior.logits(indices.repeat(2, 1), visible.repeat(2, 1), both)
        with_it, without = at_least_float32(logits).chunk(2)
        mixed = without + options.guidance * (with_it - without)
        return mixed.masked_fill(beyond, -torch.inf)  # there infinities were subtracted

    return predict
