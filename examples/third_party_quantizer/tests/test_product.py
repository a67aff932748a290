"""spectok's conformance kit, and what is particular to product quantisation."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectok import create_quantizer, load_tokenizer
from spectok.errors import InputError
from spectok.testing import QuantizerConformance

SIZES = {"dim": 8, "num_tokens": 16, "codebook_size": 32}


class TestProduct(QuantizerConformance):
    """Every check that spectok runs on its own quantizers."""

    @pytest.fixture
    def option(self):
        """What a recipe writes: ``quantizer: product``."""
        return "product"

    @pytest.fixture
    def build(self):
        """A small model, of the size the checks need."""
        return lambda: create_quantizer("product", **SIZES, num_parts=2)


def test_searching_the_parts_finds_the_nearest_of_all_combinations():
    """The mechanism: K^P codes are searched exactly at the cost of K P."""
    quantizer = create_quantizer("product", dim=6, num_tokens=5, codebook_size=4, num_parts=3)
    torch.nn.init.normal_(quantizer.codebooks)
    vectors = torch.randn(7, 5, 6)
    combinations = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3)
    codes = quantizer.lookup(combinations.unsqueeze(1)).squeeze(1)  # (64, 6)
    best = torch.cdist(vectors.flatten(0, 1), codes).argmin(-1)
    found = quantizer(vectors).indices.flatten(0, 1)
    assert torch.equal(found, combinations[best])


def test_one_part_is_plain_vector_quantisation():
    product = create_quantizer("product", **SIZES, num_parts=1)
    plain = create_quantizer("vq", **SIZES)
    plain.codebook.data.copy_(product.codebooks.data)
    vectors = torch.randn(2, 16, 8) / 32
    assert torch.equal(product(vectors).indices, plain(vectors).indices)
    assert torch.equal(product(vectors).z_q, plain(vectors).z_q)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_bits_grow_with_the_parts(num_parts):
    option = {"name": "product", "num_parts": num_parts}
    spec = load_tokenizer("vqvae", image_size=16, codebook_size=32, quantizer=option).token_spec
    assert spec.num_levels == num_parts
    assert spec.bits_per_image == 16 * 5 * num_parts


def test_parts_must_divide_the_vector():
    with pytest.raises(InputError, match="num_parts 3 does not divide dim 8; choose a divisor"):
        create_quantizer("product", **SIZES, num_parts=3)
