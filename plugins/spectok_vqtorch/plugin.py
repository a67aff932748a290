"""Registers quantizers of vector-quantize-pytorch, a library that the extra ``vqtorch`` installs.

The classes can be listed, and their options checked, without the library; building one needs it.
"""

from __future__ import annotations

from spectok import hookimpl


@hookimpl
def spectok_quantizers() -> dict[str, str]:
    """Register ``fsq``, ``lfq``, ``bsq``, ``simvq`` and their residual forms."""
    return {
        "fsq": "spectok_vqtorch.scalars:FiniteScalarQuantizer",
        "lfq": "spectok_vqtorch.bits:LookupFreeQuantizer",
        "bsq": "spectok_vqtorch.bits:BinarySphericalQuantizer",
        "simvq": "spectok_vqtorch.transformed:SimVQuantizer",
        "residual_fsq": "spectok_vqtorch.scalars:ResidualFiniteScalarQuantizer",
        "residual_lfq": "spectok_vqtorch.bits:ResidualLookupFreeQuantizer",
        "residual_simvq": "spectok_vqtorch.transformed:ResidualSimVQuantizer",
    }
