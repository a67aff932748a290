"""Registers every trained model that lies in this package."""

from __future__ import annotations

from pathlib import Path

from spectok import TrainedModel, hookimpl


@hookimpl
def spectok_models() -> dict[str, TrainedModel]:
    """Register the models in ``tokenizers``, ``priors`` and ``pipelines``."""
    return TrainedModel.below(Path(__file__).parent)
