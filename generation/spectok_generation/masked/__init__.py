"""Masked priors: models of any hidden tokens given the others, which draw many at once."""

from spectok_generation.masked.base import MaskedPrior
from spectok_generation.masked.model import MaskGIT
from spectok_generation.masked.sampling import MaskedOptions, sample_masked

__all__ = ["MaskGIT", "MaskedOptions", "MaskedPrior", "sample_masked"]
