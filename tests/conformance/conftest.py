"""The kit's longer tests run by default on the tokenizers of the four papers and on ``vqvae``."""

from __future__ import annotations

import pytest

ALWAYS = ("favae", "fqvae", "hrvqvae", "qgvae", "vqvae")
LONGER = (
    "test_accumulation_equals_one_big_step",
    "test_loss_falls_on_eight_images",
    "test_two_processes_equal_one",
)


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items):
    for item in items:
        key = getattr(item, "callspec", None) and item.callspec.params.get("key")
        if key is not None and item.originalname in LONGER and key not in ALWAYS:
            item.add_marker(pytest.mark.slow)
