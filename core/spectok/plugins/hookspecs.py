"""The whole extension surface of spectok, on one screen.

A plugin is any importable module named by an entry point in the group ``spectok.plugins``::

    [project.entry-points."spectok.plugins"]
    mine = "my_package.plugin"

It marks functions with :data:`spectok.hookimpl`, which *return* what they register: an object, or
its place as ``"my_package.model:Mine"``, imported where it is first used. Every command reads every
plugin, so import heavy libraries inside functions. A (lowercase) name claimed twice is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import typer
    from torch import nn

    from spectok.data.sources import DatasetSource
    from spectok.foreign.format import CheckpointFormat
    from spectok.foreign.model import ForeignModel
    from spectok.metrics import ImageMetric, SetMetric
    from spectok.quantizers import Quantizer
    from spectok.tokenizer import ImageTokenizer
    from spectok.trained.model import TrainedModel

GROUP = "spectok.plugins"
hookspec = pluggy.HookspecMarker("spectok")
hookimpl = pluggy.HookimplMarker("spectok")


@hookspec
def spectok_tokenizers() -> dict[str, type[ImageTokenizer] | str]:  # type: ignore[empty-body]
    """Return tokenizer classes by key, such as ``{"mine": MyTokenizer}``."""


@hookspec
def spectok_foreign_models() -> dict[str, ForeignModel]:  # type: ignore[empty-body]
    """Return kinds of models that spectok did not write, and the classes that load them."""


@hookspec
def spectok_models() -> dict[str, TrainedModel]:  # type: ignore[empty-body]
    """Return trained models in the plugin's package by name, such as ``"mine/digits"``."""


@hookspec
def spectok_quantizers() -> dict[str, type[Quantizer] | str]:  # type: ignore[empty-body]
    """Return quantizer classes by name; every one runs inside every tokenizer."""


@hookspec
def spectok_discriminators() -> dict[str, type[nn.Module] | str]:  # type: ignore[empty-body]
    """Return discriminators by name: built with ``image_shape``, they map images to logits."""


@hookspec
def spectok_priors() -> dict[str, type[Any] | str]:  # type: ignore[empty-body]
    """Return prior classes by name: models of ``p(indices)`` for any ``TokenSpec``."""


@hookspec
def spectok_datasets() -> dict[str, DatasetSource | str]:  # type: ignore[empty-body]
    """Return data set definitions by name."""


@hookspec
def spectok_metrics() -> dict[str, ImageMetric | type[SetMetric] | str]:  # type: ignore[empty-body]
    """Return functions ``(images, reconstruction) -> (B,)`` or ``SetMetric`` classes by name."""


@hookspec
def spectok_checkpoint_formats() -> dict[str, CheckpointFormat]:  # type: ignore[empty-body]
    """Return functions that turn other projects' tensors into tokenizers, by format."""


@hookspec
def spectok_recipes() -> Path:  # type: ignore[empty-body]
    """Return a folder of YAML recipes; a recipe's name is its path below it, without suffix."""


@hookspec
def spectok_commands(app: typer.Typer, train: typer.Typer) -> None:
    """Add commands to ``spectok`` (``app``) and to ``spectok train`` (``train``)."""
