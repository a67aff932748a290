"""Registers quantizers of vector-quantize-pytorch, a library that the extra ``vqtorch`` installs.

The classes can be listed, and their options checked, without the library; building one needs it.
"""

from __future__ import annotations

from typing import Any

from spectok import hookimpl


@hookimpl
def spectok_quantizers() -> dict[str, Any]:
    """Register ``fsq``, ``lfq``, ``bsq``, ``simvq`` and their residual forms."""
    from spectok_vqtorch.bits import (
        BinarySphericalQuantizer,
        LookupFreeQuantizer,
        ResidualLookupFreeQuantizer,
    )
    from spectok_vqtorch.scalars import FiniteScalarQuantizer, ResidualFiniteScalarQuantizer
    from spectok_vqtorch.transformed import ResidualSimVQuantizer, SimVQuantizer

    return {
        "fsq": FiniteScalarQuantizer,
        "lfq": LookupFreeQuantizer,
        "bsq": BinarySphericalQuantizer,
        "simvq": SimVQuantizer,
        "residual_fsq": ResidualFiniteScalarQuantizer,
        "residual_lfq": ResidualLookupFreeQuantizer,
        "residual_simvq": ResidualSimVQuantizer,
    }
