"""The data sets that core registers."""

from __future__ import annotations

from spectok.data.digits import Digits
from spectok.data.own import own_data
from spectok.data.photos import Photos
from spectok.data.presets import PRESETS
from spectok.data.shapes import Shapes
from spectok.data.sources import DatasetSource


def builtin_sources() -> dict[str, DatasetSource]:
    """Return the data sets that core registers, by name."""
    return {"digits": Digits(), "photos": Photos(), "shapes": Shapes(), **own_data(), **PRESETS}
