"""What this package registers; heavy imports stay inside the hooks, to keep `--help` fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok import hookimpl

if TYPE_CHECKING:
    from spectok import ImageTokenizer, Quantizer


@hookimpl
def spectok_quantizers() -> dict[str, type[Quantizer]]:
    """Register the quantizer ``pq``."""
    from spectok_product.quantizer import ProductQuantizer

    return {"pq": ProductQuantizer}


@hookimpl
def spectok_tokenizers() -> dict[str, type[ImageTokenizer]]:
    """Register the tokenizer ``strips``."""
    from spectok_product.tokenizer import StripVAE

    return {"strips": StripVAE}
