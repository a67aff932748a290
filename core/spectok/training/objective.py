"""What a tokenizer is trained for: its own terms, those of ``losses:``, an adversarial one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.losses import LPIPS, focal_frequency, l1, l2
from spectok.losses.perceptual import check_size
from spectok.messages import say
from spectok.tokenizer import ImageTokenizer
from spectok.training.adversarial import Adversary
from spectok.training.contracts import StepOutput
from spectok.training.loss_config import LossConfig, PerceptualConfig

NUM_MEASURED = 4096
"""Most images that the variance of pixels is measured on, spread evenly over the data."""


class Objective:
    """Computes a tokenizer's losses at a step.

    A recipe with ``losses.recon_scale`` needs :meth:`measure` before the first step.

    Args:
        model: The tokenizer, unwrapped.
        losses: What is added to its own terms or replaces them. None: nothing.
        adversary: What it is trained against. None: nothing.

    Raises:
        CheckpointError: If the weights of a perceptual term are not on this machine.
        InputError: If the images are too small for it.
    """

    def __init__(
        self,
        model: ImageTokenizer,
        losses: LossConfig | None = None,
        adversary: Adversary | None = None,
    ):
        self.losses = losses or LossConfig.model_validate({})
        self.adversary, self.step, self.inside = adversary, 0, model.inside
        self.trains_on_images = model.trains_on_images
        self.variance = 1.0
        self.perceptual, section = None, self.losses.perceptual
        if section is not None:
            check_size(section.network, model.image_shape[1:])
            self.perceptual = load_perceptual(section)

    def measure(self, dataset: Any) -> None:
        """Measure on the training images what the recipe scales its losses by.

        Args:
            dataset: A :class:`spectok.data.ImageDataset`.

        Raises:
            DataError: If all pixels are equal.
        """
        if self.losses.recon_scale is not None:
            self.variance = pixel_variance(dataset, self.inside)
            say(
                f"losses.recon_scale: the reconstruction is divided by the variance of the pixels, "
                f"{self.variance:.5g}"
            )

    def begin_step(self, step: int) -> None:
        """Note the step, counted from 0."""
        self.step = step

    def before_step(self) -> dict[str, Tensor]:
        """Complete the gradient, once it is synchronised; return what is worth logging."""
        return {} if self.adversary is None else self.adversary.before_step()

    def __call__(self, module: nn.Module, batch: dict[str, Any]) -> StepOutput:
        """Return a batch's losses.

        Args:
            module: The tokenizer, perhaps wrapped.
            batch: With ``images``, with ``latents`` that were computed beforehand, or with both.

        Raises:
            ConfigError: If the recipe names a term that does not exist.
        """
        latents = {"latents": batch["latents"]} if "latents" in batch else {}
        output = module(batch.get("images"), **latents)
        self.check_names(output.losses)
        if not self.needs_images:
            return StepOutput(dict(output.losses), dict(output.metrics), shared=output)
        pair = self.inside(batch["images"]), self.inside(output.reconstruction)
        terms = self.terms(output.losses, *pair)
        result = StepOutput(terms, dict(output.metrics), shared=output)
        if self.adversary is not None and self.step >= self.adversary.config.start_step:
            self.adversary.oppose(result, output.reconstruction)
        return result

    def terms(
        self, own: dict[str, Tensor], images: Tensor, reconstruction: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms, without the discriminator's."""
        if self.losses.recon_scale is not None:
            own = own | {"reconstruction": own["reconstruction"] / self.variance}
        if self.step < self.losses.start_step:
            return dict(own)
        kept = {name: loss for name, loss in own.items() if name not in self.losses.replaces}
        functions = {"l1": l1, "l2": l2, "frequency": focal_frequency}
        for name in self.added:
            if name in functions:
                kept[name] = getattr(self.losses, name) * functions[name](reconstruction, images)
        if self.perceptual is not None and self.losses.perceptual is not None:
            distance = self.perceptual(reconstruction, images).mean()
            kept["perceptual"] = self.losses.perceptual.weight * distance
        return kept

    @property
    def added(self) -> list[str]:
        """Names of the terms that ``losses:`` adds."""
        weighted = [name for name in ("l1", "l2", "frequency") if getattr(self.losses, name)]
        return weighted + (["perceptual"] if self.losses.perceptual is not None else [])

    @property
    def needs_images(self) -> bool:
        """Whether any term compares images with their reconstructions."""
        compared = bool(self.added) or self.losses.recon_scale is not None
        return self.trains_on_images or compared or self.adversary is not None

    def check_names(self, own: Iterable[str]) -> None:
        """Check every term that the recipe names, long before the step that needs it."""
        own = list(own)
        for name in self.losses.replaces:
            if name not in own:
                raise ConfigError(
                    f"losses.replaces: {name!r} is not a term of this tokenizer, which has "
                    f"{', '.join(own)}"
                )
        if self.losses.recon_scale is not None and "reconstruction" not in own:
            raise ConfigError(
                f"losses.recon_scale: this tokenizer has no term 'reconstruction' to scale, only "
                f"{', '.join(own)}; leave it out"
            )
        for name in self.added:
            if name in own:
                raise ConfigError(
                    f"losses.{name}: the tokenizer itself has a term of this name; leave one out"
                )
        if self.adversary is not None:
            starts_later = self.losses.start_step > self.adversary.config.start_step
            kept = [name for name in own if name not in self.losses.replaces]
            self.adversary.check_balance(own if starts_later else kept + self.added)


def pixel_variance(dataset: Any, inside: Callable[[Tensor], Tensor]) -> float:
    """Return the variance of all pixels of a data set on the [0, 1] scale.

    Measured on at most :data:`NUM_MEASURED` images, the same on every process.

    Args:
        dataset: A :class:`spectok.data.ImageDataset`.
        inside: Crops the border that the data added, which no loss sees.

    Raises:
        DataError: If all pixels are equal.
    """
    rows = torch.linspace(0, len(dataset) - 1, min(len(dataset), NUM_MEASURED)).long().tolist()
    count, total, squares = 0, 0.0, 0.0
    for row in rows:
        pixels = inside((dataset[row]["images"][None].double() + 1) / 2)
        count, total = count + pixels.numel(), total + pixels.sum().item()
        squares += pixels.square().sum().item()
    variance = squares / count - (total / count) ** 2
    if variance <= 1e-12:  # rounding of float64 is far below
        raise DataError(
            "losses.recon_scale: all pixels of the data are equal, so their variance is 0; check "
            "the images, or leave it out"
        )
    return variance


def load_perceptual(section: PerceptualConfig) -> LPIPS:
    """Load LPIPS.

    Raises:
        CheckpointError: If its weights are missing; says how a recipe names them or drops the term.
    """
    try:
        return LPIPS(section.network, section.weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"losses.perceptual: {error} (losses.perceptual.weights=FILE gives a path, "
            f"losses.perceptual=null leaves the term out)"
        ) from error
