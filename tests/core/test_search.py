"""Nearest-code search is exact, whatever the blocks it works in."""

from __future__ import annotations

import pytest
import torch

from spectok.quantizers import nearest_codes


def naive(z, codebooks):
    differences = z.unsqueeze(2).double() - codebooks.unsqueeze(1).double()  # (G, P, K, D)
    return differences.square().sum(-1).argmin(-1)


@pytest.mark.parametrize("sizes", [(1, 300, 64, 8), (5, 7, 33, 4), (16, 1, 8, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("max_bytes", [None, 1, 4096])
def test_search_finds_what_the_naive_form_finds(sizes, max_bytes):
    groups, vectors, codes, dim = sizes
    z, codebooks = torch.randn(groups, vectors, dim), torch.randn(groups, codes, dim)
    found = nearest_codes(z, codebooks, max_bytes=max_bytes)
    assert found.dtype == torch.int64
    assert torch.equal(found, naive(z, codebooks))


def test_ties_go_to_the_smaller_index():
    codebooks = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [0, 1]]])
    z = torch.tensor([[[1.0, 0], [0, 1], [0, 0]]])
    assert nearest_codes(z, codebooks).tolist() == [[0, 1, 0]]


def test_autocast_does_not_change_the_result():
    z, codebooks = torch.randn(1, 200, 16), torch.randn(1, 128, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(z, codebooks), naive(z, codebooks))


def test_search_carries_no_gradient():
    z = torch.randn(1, 3, 2, requires_grad=True)
    assert not nearest_codes(z, torch.randn(1, 4, 2)).requires_grad


def test_no_vectors_give_no_indices():
    assert nearest_codes(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3)).shape == (2, 0)
