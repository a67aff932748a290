"""Draw latents: start from noise, and denoise step by step.

All noise of image ``i`` comes from its own stream on the CPU, seeded by ``(seed, i)``. An image
therefore does not depend on its batch, the number of processes or the kind of device, up to the
rounding of batched matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectok.device import send
from spectok.errors import InputError
from spectok.training.batches import derive_seed
from spectok_generation.conditions import Condition, join
from spectok_generation.diffusion.model import LDM
from spectok_generation.diffusion.noising import Sampler
from spectok_generation.guidance import check_can_guide, check_scale
from spectok_generation.sampling import NOT_FINITE, evaluating
from spectok_generation.seeds import Seed, streams


@dataclass(frozen=True)
class DiffusionOptions:
    """How latents are drawn.

    Args:
        scheduler: ``ddpm`` or ``ddim`` for diffusion, ``flow`` for flow. None: the prior's own
            ``scheduler``, else ``ddim`` or ``flow``.
        num_steps: Denoising steps. None: the prior's own ``num_steps``, if the scheduler is its
            own too; else as many as in training for ``ddpm``, about 50 otherwise.
        guidance: Scale of classifier-free guidance (Ho and Salimans 2022); 1 is the conditional
            model itself.
    """

    scheduler: Sampler | None = None
    num_steps: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise InputError(f"num_steps {self.num_steps} must be at least 1")
        check_scale("guidance", self.guidance)


@torch.no_grad()
def sample_latents(
    prior: LDM,
    numbers: Sequence[int],
    condition: Condition | None = None,
    *,
    seed: Seed = 0,
    options: DiffusionOptions | None = None,
) -> Float[Tensor, "b c h w"]:
    """Draw the latents of one batch of images.

    Args:
        prior: A trained prior; in eval mode while it draws.
        numbers: The number of each image, which seeds it together with ``seed``.
        condition: Class or text of each image.
        seed: The only source of randomness, together with the number of the image; or one seed
            for each image.
        options: Scheduler, steps and guidance.

    Returns:
        float32 latents, for ``tokenizer.decode_latents``.

    Raises:
        InputError: If the condition or the options do not fit the prior, or what it computes is
            not finite.
    """
    options = options or DiffusionOptions()
    # The scheduler looks its times up, and would wait for a GPU several times in each step.
    scheduler = prior.noise_schedule.make_sampler(options.scheduler, options.num_steps, "cpu")
    generators = [image_generator(*stream) for stream in streams(seed, numbers)]
    noise = [torch.randn(prior.latent_shape, generator=generator) for generator in generators]
    latents = torch.stack(noise).to(prior.device)
    predict = _predictor(prior, condition, len(numbers), options.guidance)
    with evaluating(prior):
        for time in scheduler.timesteps:
            times = send(time.expand(len(numbers)).contiguous(), prior.device)
            prediction = predict(latents, times)
            latents = scheduler.step(prediction, time, latents, generator=generators).prev_sample
    if not latents.isfinite().all():
        raise InputError(NOT_FINITE.format(prior.dtype))
    return prior.restore(latents)


def image_generator(seed: int, number: int) -> torch.Generator:
    """Return the CPU generator of all noise of one image.

    Raises:
        InputError: If the seed or the number is negative.
    """
    streams(seed, [number])
    return torch.Generator().manual_seed(derive_seed(seed, number))


def _predictor(
    prior: LDM, condition: Condition | None, batch: int, guidance: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``(latents, times) -> prediction``, with guidance unless its scale is 1."""
    prior.check_can_omit(condition)
    checked = prior.check_condition(condition, batch)
    if guidance == 1.0:
        return lambda latents, times: prior.denoiser(
            latents.to(prior.dtype), times, checked
        ).float()
    check_can_guide(prior, condition, guidance)
    both = join(checked, prior.null_condition(batch))

    def predict(latents: Tensor, times: Tensor) -> Tensor:
        twice = latents.to(prior.dtype).repeat(2, 1, 1, 1)
        prediction = prior.denoiser(twice, times.repeat(2), both).float()
        given, without = prediction.chunk(2)
        return without + guidance * (given - without)

    return predict
