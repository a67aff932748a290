"""Latent diffusion over the continuous latents of any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from spectok.device import send
from spectok.distributed import draw_per_sample
from spectok.errors import ConfigError, InputError
from spectok_generation.conditions import Condition
from spectok_generation.diffusion.denoiser import Denoiser, UNetShape
from spectok_generation.diffusion.noising import BetaSchedule, NoiseSchedule, Prediction, Sampler
from spectok_generation.priors.base import Prior, PriorOutput

STATISTICS = ("latent_mean", "latent_std")
HALVES = (torch.float16, torch.bfloat16)

Count = Annotated[int, Field(ge=1)]
Level = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class LDM(Prior):
    """Latent diffusion (Rombach et al. 2022) with a diffusers UNet, on any tokenizer.

        latents (B,c,h,w)   tokenizer.encode_latents(images): before quantisation
          | standardise       by the mean and standard deviation of each channel
        standard (B,c,h,w)
          | add noise
        noisy (B,c,h,w)     class or text
          | denoiser ─────────┘
        prediction (B,c,h,w)

    Samples are rescaled to the latents and decoded by ``tokenizer.decode_latents``, which quantises
    them: as with any other prior, every image drawn is the image of some tokens.

    Call :meth:`set_statistics` before training; the statistics are saved with the weights.

    Args:
        token_spec: Layout of the tokens, as a dict.
        num_classes: Number of classes; 0 for a prior without classes.
        tokenizer: Record of the tokenizer; its ``latent_shape`` is that of the latents.
        text: Record of the text encoder, for a prior conditioned on text; see :class:`Prior`.
        channels: Channels of each level of the UNet; every level but the last halves the size.
        layers: Residual blocks per level.
        attention_levels: Levels with attention, counted from 0; the middle always has it.
        dropout: Dropout inside the residual blocks.
        condition_dropout: Fraction of training images whose class or text is hidden.
        prediction: What the network predicts; see
            :class:`~spectok_generation.diffusion.noising.NoiseSchedule`.
        num_timesteps: Number of diffusion steps.
        beta_schedule: How beta rises from step to step.
        beta_range: First and last beta of the linear schedules.
        scheduler: How samples are drawn unless the caller says otherwise; see
            :class:`~spectok_generation.diffusion.sampling.DiffusionOptions`, as for the next.
        num_steps: Denoising steps unless the caller says otherwise, with that scheduler.

    Raises:
        ConfigError: If the options do not fit one another or the latents.
    """

    shard_units = ("ResnetBlock2D", "Transformer2DModel")
    _keep_in_fp32_modules = [*STATISTICS]  # noqa: RUF012 - the name diffusers reads
    added_options: ClassVar[Mapping[str, Any]] = {"scheduler": None, "num_steps": None}
    latent_mean: Tensor
    latent_std: Tensor

    @register_to_config
    def __init__(
        self,
        *,
        token_spec: dict[str, Any],
        num_classes: int = 0,
        tokenizer: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        channels: tuple[Count, ...] = (64, 128),
        layers: Count = 2,
        attention_levels: tuple[Level, ...] = (1,),
        dropout: Rate = 0.0,
        condition_dropout: Rate = 0.0,
        prediction: Prediction = "epsilon",
        num_timesteps: Count = 1000,
        beta_schedule: BetaSchedule = "linear",
        beta_range: tuple[float, float] = (1e-4, 0.02),
        scheduler: Sampler | None = None,
        num_steps: Count | None = None,
    ):
        super().__init__(token_spec, num_classes, condition_dropout, (text or {}).get("width", 0))
        self.latent_shape = latent_shape(tokenizer)
        num_channels = self.latent_shape[0]
        self.noise_schedule = NoiseSchedule(
            prediction, num_timesteps, beta_schedule, (beta_range[0], beta_range[1])
        )
        self.noise_schedule.set_sampling(scheduler, num_steps)
        shape = UNetShape(channels, layers, attention_levels, dropout)
        self.denoiser = Denoiser(num_channels, shape, num_classes, self.text_width)
        self.register_buffer("latent_mean", torch.zeros(num_channels))
        self.register_buffer("latent_std", torch.ones(num_channels))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move as any module does, but keep the statistics of the latents in float32."""
        before = {name: self._buffers[name] for name in STATISTICS}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            after = self._buffers[name]
            if tensor is not None and after is not None and after.dtype in HALVES:
                self._buffers[name] = tensor.to(after.device)
        return self

    def set_statistics(self, mean: Float[Tensor, "c"], std: Float[Tensor, "c"]) -> None:
        """Set the statistics that latents are standardised by.

        Args:
            mean: Mean of each channel.
            std: Standard deviation of each channel. A channel that is constant up to rounding keeps
                its scale.
        """
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(torch.where(std > 1e-6 * mean.abs(), std, 1.0))

    def standardise(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Bring a tokenizer's latents to mean 0 and standard deviation 1, in float32."""
        return (latents.float() - self.latent_mean.view(-1, 1, 1)) / self.latent_std.view(-1, 1, 1)

    def restore(self, standard: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Undo :meth:`standardise`."""
        return standard * self.latent_std.view(-1, 1, 1) + self.latent_mean.view(-1, 1, 1)

    def forward(
        self, latents: Float[Tensor, "b c h w"], condition: Condition | None = None
    ) -> PriorOutput:
        """Return the mean squared error of the prediction (Ho et al. 2020, Eq. 14).

        Args:
            latents: What ``tokenizer.encode_latents`` returns.
            condition: Class or text of each image, for a prior that takes one.

        Raises:
            InputError: If the latents do not have the shape of this prior.
        """
        self._check_latents(latents)
        condition = self.drop_condition(self.check_condition(condition, len(latents)))
        uniforms = send(draw_per_sample(len(latents)), self.device)
        noise = send(_draw_noise(self.latent_shape, len(latents)), self.device)
        noised = self.noise_schedule.add_noise(self.standardise(latents), noise, uniforms)
        prediction = self.denoiser(noised.noisy, noised.times, condition)
        return PriorOutput({"denoising": F.mse_loss(prediction.float(), noised.target)})

    def _check_latents(self, latents: Tensor) -> None:
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise InputError(
                f"latents of shape {tuple(latents.shape)} are not (B, "
                f"{', '.join(map(str, self.latent_shape))}); encode images with the "
                f"tokenizer of this prior"
            )


def latent_shape(record: dict[str, Any] | None) -> tuple[int, int, int]:
    """Return the shape ``(c, h, w)`` of a tokenizer's latents, from its record.

    Raises:
        ConfigError: If the record does not contain it.
    """
    shape = (record or {}).get("latent_shape")
    if shape is None:
        raise ConfigError(
            "the tokenizer's record has no latent_shape, which ldm needs; make the record with "
            "spectok_generation.records.tokenizer_record"
        )
    channels, height, width = shape
    return channels, height, width


def _draw_noise(shape: tuple[int, int, int], batch_size: int) -> Float[Tensor, "b c h w"]:
    """Draw normal noise on the CPU; how the batch is split over ranks does not affect an image."""
    high, low = draw_per_sample(batch_size), draw_per_sample(batch_size)
    seeds = (high.double() * 2**48 + low.double() * 2**24).long().tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
