"""The sections ``losses:`` and ``adversarial:`` of a tokenizer's recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from spectok.recipes.schema import Registered, Section


class PerceptualConfig(Section):
    """The term ``perceptual``: LPIPS, on a backbone whose weights are on this machine.

    Args:
        network: Backbone; VQGAN and the papers after it train with ``vgg``.
        weight: Weight of the term.
        weights: File of the backbone's weights. None: torchvision's, in torch's cache.
    """

    network: Literal["vgg", "alex", "squeeze"] = "vgg"
    weight: float = Field(1.0, gt=0)
    weights: str | None = None


class LossConfig(Section):
    """What a tokenizer is trained for besides its own terms, or instead of them.

    Args:
        recon_scale: ``"data_variance"``: divide the tokenizer's own term ``reconstruction`` by the
            variance of the training images' pixels on the [0, 1] scale, as the released code of
            CVQ-VAE does. None: leave it as it is.
        start_step: Optimiser steps with the tokenizer's own terms alone.
        replaces: The tokenizer's own terms that end when these begin, such as
            ``[reconstruction]``.
        l1: Weight of the mean absolute error of pixels in [-1, 1].
        l2: Weight of their mean squared error.
        frequency: Weight of the focal frequency loss.
        perceptual: LPIPS. None: without.
    """

    recon_scale: Literal["data_variance"] | None = None
    start_step: int = Field(0, ge=0)
    replaces: tuple[str, ...] = Field((), strict=False)
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)
    frequency: float = Field(0.0, ge=0)
    perceptual: PerceptualConfig | None = None


class AdversarialConfig(Section):
    """A discriminator that tells reconstructions from images, with hinge losses.

    Args:
        discriminator: Name, or mapping of name and options, of a registered discriminator.
        weight: Weight of the tokenizer's term ``generator``.
        adaptive: Multiply the weight in each step by a ratio of gradient norms at the decoder's
            last layer: that of the terms in ``balance`` over that of the generator's term.
        balance: Names of those terms. None: whichever of ``reconstruction``, ``l1``, ``l2`` and
            ``perceptual`` the tokenizer is trained for.
        epsilon: Added to the norm in the denominator.
        start_step: Optimiser steps before it begins.
        alternate: Train the tokenizer on even steps and the discriminator on odd ones, rather than
            both on each.
        learning_rate: The discriminator's peak learning rate; the schedule is the tokenizer's.
            None: the tokenizer's.
    """

    discriminator: Annotated[str | dict[str, Any], Registered("discriminator")] = "patchgan"
    weight: float = Field(0.8, gt=0)
    adaptive: bool = True
    balance: tuple[str, ...] | None = Field(None, strict=False)
    epsilon: float = Field(1e-4, gt=0)
    start_step: int = Field(0, ge=0)
    alternate: bool = False
    learning_rate: float | None = Field(None, gt=0)
