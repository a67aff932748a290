"""What every quantizer inherits: shape checks, float32, the straight-through gradient, losses."""

from __future__ import annotations

import math

import pytest
import torch

from spectok import create_quantizer
from spectok.errors import ConfigError, InputError, UnknownNameError
from spectok.loading import build_quantizer
from spectok.outputs import QuantizerOutput
from spectok.quantizers import (
    Quantizer,
    QuantizerLevel,
    codebook_losses,
    perplexity,
    straight_through,
)


class Rounds(Quantizer):
    """Rounds each number to one of ``codebook_size`` integers: a quantizer with no state."""

    def __init__(self, *, dim, num_tokens, codebook_size):
        super().__init__(dim=dim, num_tokens=num_tokens, codebook_size=codebook_size)
        self.seen = []

    @property
    def levels(self):
        return (QuantizerLevel(self.codebook_size),) * self.dim

    def quantize(self, z):
        self.seen.append((z.dtype, torch.is_autocast_enabled("cpu"), self.training))
        indices = z.detach().round().clamp(0, self.codebook_size - 1).long()
        return QuantizerOutput(straight_through(z, self.lookup(indices)), indices)

    def lookup(self, indices):
        return indices.float()


@pytest.fixture
def quantizer():
    return Rounds(dim=2, num_tokens=3, codebook_size=4)


def test_quantize_sees_float32_outside_autocast(quantizer):
    with torch.autocast("cpu", torch.bfloat16):
        output = quantizer(torch.rand(1, 3, 2, dtype=torch.bfloat16))
    assert quantizer.seen == [(torch.float32, False, True)]
    assert output.z_q.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 3, 3), (3, 2), (1, 3, 2, 1)])
def test_other_shapes_are_refused_by_name(quantizer, shape):
    with pytest.raises(InputError) as caught:
        quantizer(torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert "(B, 3, 2)" in str(caught.value)


def test_encode_runs_in_eval_mode_and_restores_the_mode(quantizer):
    indices = quantizer.encode(torch.full((1, 3, 2), 1.2))
    assert quantizer.seen[-1][2] is False
    assert quantizer.training
    assert indices.tolist() == [[[1, 1]] * 3]
    quantizer.eval().encode(torch.zeros(1, 3, 2))
    assert not quantizer.training


def test_encode_restores_the_mode_after_an_error(quantizer):
    with pytest.raises(InputError):
        quantizer.encode(torch.zeros(1))
    assert quantizer.training


@pytest.mark.parametrize("name", ["dim", "num_tokens", "codebook_size"])
def test_sizes_must_be_positive(name):
    sizes = {"dim": 2, "num_tokens": 3, "codebook_size": 4} | {name: 0}
    with pytest.raises(InputError, match=f"{name} 0 must be at least 1"):
        Rounds(**sizes)


def test_straight_through_is_exact_forward_and_identity_backward():
    z = torch.randn(4, 3, requires_grad=True)
    z_q = torch.randn(4, 3) * 1e4  # where z + (z_q - z) would round
    weights = torch.randn(4, 3)
    output = straight_through(z, z_q)
    assert torch.equal(output, z_q)
    (output * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def test_straight_through_gives_the_codes_no_gradient():
    codes = torch.randn(2, 2, requires_grad=True)
    straight_through(torch.randn(2, 2, requires_grad=True), codes).sum().backward()
    assert codes.grad is None


def test_each_loss_moves_its_own_side_with_its_own_weight():
    z = torch.tensor([[1.0, 3.0]], requires_grad=True)
    z_q = torch.tensor([[0.0, 1.0]], requires_grad=True)
    losses = codebook_losses(z, z_q, codebook_weight=0.5, commitment_weight=3.0)
    assert losses["codebook"].item() == pytest.approx(0.5 * (1 + 4) / 2)
    assert losses["commitment"].item() == pytest.approx(3 * (1 + 4) / 2)
    losses["commitment"].backward()
    assert z.grad.tolist() == [[3, 6]]  # 3 * 2 (z - e) / 2
    assert z_q.grad is None
    losses["codebook"].backward()
    assert z_q.grad.tolist() == [[-0.5, -1]]
    assert z.grad.tolist() == [[3, 6]]


def test_a_codebook_weight_of_zero_leaves_the_term_out():
    z = torch.zeros(1, 2)
    assert codebook_losses(z, z, codebook_weight=0, commitment_weight=1).keys() == {"commitment"}


def test_perplexity_counts_codes_in_effective_use():
    counts = torch.tensor([[4.0, 4, 4, 4], [16, 0, 0, 0], [8, 8, 0, 0], [0, 0, 0, 0]])
    assert perplexity(counts).tolist() == pytest.approx([4, 1, 2, 1])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert perplexity(torch.tensor([1.0, 3.0])).item() == pytest.approx(math.exp(entropy))


def test_create_quantizer_names_what_is_unknown():
    sizes = {"dim": 4, "num_tokens": 4, "codebook_size": 8}
    with pytest.raises(UnknownNameError, match=r"unknown quantizer 'emma' .did you mean 'ema'"):
        create_quantizer("emma", **sizes)
    with pytest.raises(ConfigError, match=r"decayy: unknown key .did you mean 'decay'"):
        create_quantizer("ema", **sizes, decayy=0.9)
    with pytest.raises(ConfigError, match=r"decay: .*less than 1"):
        create_quantizer("ema", **sizes, decay=2.0)


def test_build_quantizer_takes_a_name_or_a_mapping():
    sizes = {"dim": 4, "num_tokens": 4, "codebook_size": 8}
    assert build_quantizer("ema", **sizes).running_means.decay == 0.99
    assert build_quantizer({"name": "ema", "decay": 0.5}, **sizes).running_means.decay == 0.5
    with pytest.raises(ConfigError, match="needs a name"):
        build_quantizer({"decay": 0.5}, **sizes)
