"""How latents become noise in training, and the schedulers that reverse it in sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Float, Num
from torch import Tensor

from spectok.errors import ConfigError, InputError

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Sampler = Literal["ddpm", "ddim", "flow"]

DEFAULT_STEPS = 50


@dataclass(frozen=True)
class Noised:
    """A batch of noisy latents, and the target of the network.

    Args:
        noisy: The network's input.
        times: Noise level of each image, in steps of the schedule.
        target: What the network should predict.
    """

    noisy: Float[Tensor, "b c h w"]
    times: Num[Tensor, "b"]
    target: Float[Tensor, "b c h w"]


class NoiseSchedule:
    """Two ways from latents to noise: diffusion in steps, or a straight line.

    Diffusion (Ho et al. 2020, Eq. 4): ``noisy = sqrt(a) latents + sqrt(1 - a) noise``, where ``a``
    falls over the steps as given by the betas; the network predicts the noise (``epsilon``), the
    latents (``sample``) or ``sqrt(a) noise - sqrt(1 - a) latents`` (``v_prediction``; Salimans and
    Ho 2022). Sampled by ``ddpm`` or ``ddim`` (Song et al. 2021).

    Flow (Lipman et al. 2023; Liu et al. 2023): ``noisy = (1 - s) latents + s noise`` with s uniform
    in [0, 1); the network predicts ``noise - latents``. Sampled by Euler steps, ``flow``.

    Args:
        prediction: What the network predicts.
        num_timesteps: Number of diffusion steps; for flow, the scale of the times.
        beta_schedule: How beta rises from step to step; diffusion only.
        beta_range: First and last beta of the linear schedules.

    Raises:
        ConfigError: If the betas do not satisfy 0 < first <= last < 1.
    """

    def __init__(
        self,
        prediction: Prediction,
        num_timesteps: int,
        beta_schedule: BetaSchedule,
        beta_range: tuple[float, float],
    ):
        first, last = beta_range
        if not 0 < first <= last < 1:
            raise ConfigError(
                f"prior.beta_range {list(beta_range)} must be two numbers, 0 < first <= last < 1"
            )
        self.prediction, self.num_timesteps = prediction, num_timesteps
        self._sampling: tuple[Sampler | None, int | None] = (None, None)
        self._options: dict[str, Any] = {
            "num_train_timesteps": num_timesteps,
            "beta_schedule": beta_schedule,
            "beta_start": first,
            "beta_end": last,
            "prediction_type": "epsilon" if prediction == "flow" else prediction,
            "clip_sample": False,  # latents, unlike pixels, have no bounds
            "timestep_spacing": "trailing",  # the only one that begins at pure noise
        }
        self._diffusion = DDPMScheduler(**self._options)

    def set_sampling(self, name: Sampler | None, num_steps: int | None) -> None:
        """Set what :meth:`make_sampler` takes where its caller leaves it open.

        Args:
            name: Scheduler. None: ``ddim`` or ``flow``.
            num_steps: Number of steps with that scheduler. None: as in :meth:`make_sampler`.

        Raises:
            ConfigError: If the name or the number of steps does not fit.
        """
        try:
            self._check_sampler(name or self._fitting[0], num_steps)
        except InputError as error:
            raise ConfigError(f"prior: {error}") from error
        self._sampling = (name, num_steps)

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        uniforms: Float[Tensor, "b"],
    ) -> Noised:
        """Add noise to a batch of latents.

        Args:
            latents: Standardised latents.
            noise: Normal noise.
            uniforms: A number in [0, 1) for each image, which sets its noise level.
        """
        if self.prediction == "flow":
            share = uniforms.view(-1, 1, 1, 1)
            noisy = torch.lerp(latents, noise, share)
            return Noised(noisy, uniforms * self.num_timesteps, noise - latents)
        times: Any = (uniforms * self.num_timesteps).long()
        noisy = self._diffusion.add_noise(latents, noise, times)
        if self.prediction == "v_prediction":
            target = self._diffusion.get_velocity(latents, noise, times)
        else:
            target = noise if self.prediction == "epsilon" else latents
        return Noised(noisy, times, target)

    def make_sampler(self, name: Sampler | None, num_steps: int | None, device: Any) -> Any:
        """Return a new diffusers scheduler with its steps set.

        Args:
            name: ``ddpm`` and ``ddim`` for diffusion, ``flow`` for flow. None: what
                :meth:`set_sampling` was given, else ``ddim`` or ``flow``.
            num_steps: Number of steps. None: what :meth:`set_sampling` was given, if the scheduler
                is the one it was given for; else all for ``ddpm``, about 50 for the others.
            device: Device of the times.

        Raises:
            InputError: If the name or the number of steps does not fit.
        """
        name, num_steps = self.resolve(name, num_steps)
        if name == "flow":
            from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
                FlowMatchEulerDiscreteScheduler,  # which imports scipy.stats, a second
            )

            scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_timesteps)
            # steps of equal length; its own last one would only go from 1 / num_timesteps to 0
            levels = [1 - step / num_steps for step in range(num_steps)]
            scheduler.set_timesteps(sigmas=levels, device=device)
        else:
            kind = DDIMScheduler if name == "ddim" else DDPMScheduler
            scheduler = kind(**self._options)
            scheduler.set_timesteps(num_steps, device=device)
        return scheduler

    def resolve(self, name: Sampler | None, num_steps: int | None) -> tuple[Sampler, int]:
        """Return the scheduler and the number of steps that :meth:`make_sampler` takes.

        Raises:
            InputError: If the name or the number of steps does not fit.
        """
        usual = self._sampling[0] or self._fitting[0]
        name = name or usual
        if num_steps is None and name == usual:
            num_steps = self._sampling[1]
        return name, self._check_sampler(name, num_steps)

    @property
    def _fitting(self) -> tuple[Sampler, ...]:
        return ("flow",) if self.prediction == "flow" else ("ddim", "ddpm")

    def _check_sampler(self, name: Sampler, num_steps: int | None) -> int:
        """Check a scheduler and its number of steps; return that, or the default."""
        if name not in self._fitting:
            raise InputError(
                f"scheduler {name!r} does not fit a model that predicts {self.prediction!r}; take "
                f"{' or '.join(self._fitting)}"
            )
        num_steps = num_steps or self._default_steps(name)
        self._check_steps(name, num_steps)
        return num_steps

    def _default_steps(self, name: Sampler) -> int:
        if name == "ddpm":
            return self.num_timesteps
        most = min(DEFAULT_STEPS, self.num_timesteps)
        return max(self._divisors(most)) if name == "ddim" else most

    def _check_steps(self, name: Sampler, num_steps: int) -> None:
        if not 1 <= num_steps <= self.num_timesteps:
            raise InputError(f"num_steps {num_steps} is outside 1..{self.num_timesteps}")
        if (
            name == "ddim" and self.num_timesteps % num_steps
        ):  # DDIMScheduler assumes that it divides
            fit = max(self._divisors(num_steps))
            raise InputError(
                f"num_steps {num_steps} of ddim does not divide the {self.num_timesteps} steps of "
                f"training; take e.g. {fit}"
            )

    def _divisors(self, most: int) -> list[int]:
        return [n for n in range(1, most + 1) if self.num_timesteps % n == 0]
