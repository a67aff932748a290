"""Core's own plugin: data sets, metrics and discriminators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from spectok.data.sources import DatasetSource
    from spectok.metrics import ImageMetric, SetMetric


@hookimpl
def spectok_datasets() -> dict[str, DatasetSource]:
    """Register the built-in data sets and the presets of the papers."""
    from spectok.data.builtin import builtin_sources

    return builtin_sources()


@hookimpl
def spectok_metrics() -> dict[str, ImageMetric | type[SetMetric]]:
    """Register the metrics that need no network weights."""
    from spectok import metrics

    return {"psnr": metrics.psnr, "ssim": metrics.ssim, "mse": metrics.mse}


@hookimpl
def spectok_discriminators() -> dict[str, type[nn.Module]]:
    """Register ``patchgan`` and ``stylegan2``."""
    from spectok.nn.discriminators import PatchGAN
    from spectok.nn.stylegan import StyleGAN2Discriminator

    return {"patchgan": PatchGAN, "stylegan2": StyleGAN2Discriminator}
