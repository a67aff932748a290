"""spectok's conformance kits, and tests of product quantisation and of strips."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectok import InputError, create_quantizer, load_tokenizer
from spectok.testing import QuantizerConformance, TokenizerConformance

SIZES = {"dim": 8, "num_tokens": 16, "codebook_size": 64}
SMALL = {"image_size": 16, "in_channels": 1, "codebook_size": 32, "codebook_dim": 8, "width": 64}


def small_strips(**options):
    """Build a small model: four strips of 4 x 16 grey pixels."""
    return load_tokenizer("strips", **SMALL | options)


class TestProduct(QuantizerConformance):
    """Every check that spectok runs on its own quantizers."""

    @pytest.fixture
    def option(self):
        """What a recipe writes: ``quantizer: pq``."""
        return "pq"

    @pytest.fixture
    def build(self):
        """A small model, of the size the checks need."""
        return lambda: create_quantizer("pq", **SIZES, num_parts=2)


class TestStrips(TokenizerConformance):
    """Every check that spectok runs on its own tokenizers."""

    @pytest.fixture
    def build(self):
        """A small model, of the size the checks need."""
        return small_strips


def test_searching_the_parts_finds_the_nearest_of_all_combinations():
    """The mechanism: K^P codes are searched exactly at the cost of K P."""
    quantizer = create_quantizer("pq", dim=6, num_tokens=5, codebook_size=4, num_parts=3)
    torch.nn.init.normal_(quantizer.codebooks)
    vectors = torch.randn(7, 5, 6)
    combinations = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3)
    codes = quantizer.lookup(combinations.unsqueeze(1)).squeeze(1)  # (64, 6)
    best = torch.cdist(vectors.flatten(0, 1), codes).argmin(-1)
    found = quantizer(vectors).indices.flatten(0, 1)
    assert torch.equal(found, combinations[best])


def test_one_part_is_plain_vector_quantisation():
    product = create_quantizer("pq", **SIZES, num_parts=1)
    plain = create_quantizer("vq", **SIZES)
    plain.codebook.data.copy_(product.codebooks.data)
    vectors = torch.randn(2, 16, 8) / 32
    assert torch.equal(product(vectors).indices, plain(vectors).indices)
    assert torch.equal(product(vectors).z_q, plain(vectors).z_q)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_bits_grow_with_the_parts(num_parts):
    option = {"name": "pq", "num_parts": num_parts}
    spec = load_tokenizer("vqvae", image_size=16, codebook_size=32, quantizer=option).token_spec
    assert spec.num_levels == num_parts
    assert spec.bits_per_image == 16 * 5 * num_parts


@pytest.mark.parametrize(("quantizer", "per_strip"), [("ema", 1), ("pq", 2), ("rq", 4)])
def test_a_prefix_is_the_top_of_the_image(quantizer, per_strip):
    """The mechanism: a strip's own tokens alone decide how it looks."""
    tokenizer = small_strips(quantizer=quantizer).eval()
    prefixes = tokenizer.token_spec.decodable_prefixes
    assert prefixes == tuple(per_strip * strips for strips in range(5))
    indices = torch.randint(0, 32, (3, 4 * per_strip))
    with torch.no_grad():
        whole = tokenizer.decode(indices)
        for strips, length in enumerate(prefixes):
            top = tokenizer.decode(indices, length)
            assert torch.equal(top[:, :, : 4 * strips], whole[:, :, : 4 * strips])
            assert not top[:, :, 4 * strips :].any()  # mid-grey


def test_strips_must_divide_the_image():
    with pytest.raises(InputError, match="strip_height 5 does not divide image_size 16"):
        small_strips(strip_height=5)


def test_parts_must_divide_the_vector():
    with pytest.raises(InputError, match="num_parts 3 does not divide dim 8; choose a divisor"):
        create_quantizer("pq", **SIZES, num_parts=3)
