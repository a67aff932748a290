"""The conformance kit: every check that spectok runs on its own plugins, ready for yours.

Subclass one class, give one fixture, and run pytest (which spectok itself does not install)::

    import pytest
    from spectok import create_quantizer
    from spectok.testing import QuantizerConformance

    class TestMine(QuantizerConformance):
        @pytest.fixture
        def build(self):
            return lambda: create_quantizer("mine", dim=8, num_tokens=16, codebook_size=32)

``build`` returns a function that builds a small, fresh model; models built after the same seed
must be equal. A check that cannot hold is left out by name, with the reason::

    skip = {"test_accumulation_equals_one_big_step": "the entropy term is not a mean over vectors"}
"""

from __future__ import annotations

from spectok.testing.base import Conformance
from spectok.testing.expect import expect, expect_refusal
from spectok.testing.quantizer import QuantizerConformance
from spectok.testing.tokenizer import TokenizerConformance

__all__ = [
    "Conformance",
    "QuantizerConformance",
    "TokenizerConformance",
    "expect",
    "expect_refusal",
]
