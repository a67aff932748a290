"""What this package registers; heavy imports wait inside the hook, for the sake of `--help`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok import hookimpl

if TYPE_CHECKING:
    from spectok import Quantizer


@hookimpl
def spectok_quantizers() -> dict[str, type[Quantizer]]:
    """Register the quantizer ``product``."""
    from spectok_product.quantizer import ProductQuantizer

    return {"product": ProductQuantizer}
