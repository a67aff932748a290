"""Quantizers."""

from spectok.quantizers.codebook import CodebookQuantizer
from spectok.quantizers.contract import (
    Quantizer,
    QuantizerLevel,
    codebook_losses,
    outermost_quantizers,
    perplexity,
    straight_through,
)
from spectok.quantizers.counting import (
    FREQUENCY_DECAY,
    USED_SHARE,
    CountingQuantizer,
    SteppedQuantizer,
)
from spectok.quantizers.running import RunningMeans, RunningQuantizer
from spectok.quantizers.search import DISTANCE_BYTES, nearest_codes
from spectok.recipes.schema import QuantizerOption

__all__ = [
    "DISTANCE_BYTES",
    "FREQUENCY_DECAY",
    "USED_SHARE",
    "CodebookQuantizer",
    "CountingQuantizer",
    "Quantizer",
    "QuantizerLevel",
    "QuantizerOption",
    "RunningMeans",
    "RunningQuantizer",
    "SteppedQuantizer",
    "codebook_losses",
    "nearest_codes",
    "outermost_quantizers",
    "perplexity",
    "straight_through",
]
