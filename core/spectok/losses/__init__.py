"""Losses for any tokenizer; recipes name them in ``losses:`` and ``adversarial:``."""

from spectok.losses.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from spectok.losses.frequency import focal_frequency
from spectok.losses.perceptual import LPIPS
from spectok.losses.reconstruction import l1, l2

__all__ = [
    "LPIPS",
    "adaptive_weight",
    "focal_frequency",
    "hinge_discriminator",
    "hinge_generator",
    "l1",
    "l2",
]
