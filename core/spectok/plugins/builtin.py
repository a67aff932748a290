"""Core's own plugin: data sets, metrics and discriminators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from spectok.data.sources import DatasetSource


@hookimpl
def spectok_datasets() -> dict[str, DatasetSource]:
    """Register the built-in data sets and the presets of the papers."""
    from spectok.data.builtin import builtin_sources

    return builtin_sources()


@hookimpl
def spectok_metrics() -> dict[str, str]:
    """Register the metrics that need no network weights."""
    return {
        "psnr": "spectok.metrics:psnr",
        "ssim": "spectok.metrics:ssim",
        "mse": "spectok.metrics:mse",
    }


@hookimpl
def spectok_discriminators() -> dict[str, str]:
    """Register ``patchgan`` and ``stylegan2``."""
    return {
        "patchgan": "spectok.nn.discriminators:PatchGAN",
        "stylegan2": "spectok.nn.stylegan:StyleGAN2Discriminator",
    }
