"""Whether tokenizers do what PyTorch's tools expect of a model: pytrees, graphs, half precision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from spectok import QuantizerOutput, TokenizerOutput, list_quantizers, list_tokenizers
from spectok.testing.small import small_tokenizer

QUICK = ["vqvae", "hrvqvae"]  # a grid with one codebook, a tree


# -- pytrees ---------------------------------------------------------------------------------------


def test_outputs_are_pytrees():
    tokenizer = small_tokenizer("vqvae").eval()
    output = tokenizer(torch.rand(2, *tokenizer.image_shape) * 2 - 1)
    leaves, tree = pytree.tree_flatten(output)
    assert len(leaves) == 2 + len(output.losses) + len(output.metrics)
    assert leaves[0] is output.reconstruction
    again = pytree.tree_unflatten(leaves, tree)
    assert isinstance(again, TokenizerOutput)
    assert again == output
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(output)[0]]
    assert ".indices" in paths
    assert ".losses['reconstruction']" in paths
    doubled = pytree.tree_map(lambda tensor: tensor * 2, output)
    assert torch.equal(doubled.reconstruction, output.reconstruction * 2)
    assert torch.equal(doubled.losses["reconstruction"], output.losses["reconstruction"] * 2)


def test_outputs_of_quantizers_are_pytrees_and_their_layout_is_written_down():
    output = QuantizerOutput(torch.zeros(1, 2, 3), torch.zeros(1, 2, 1, dtype=torch.int64))
    leaves, tree = pytree.tree_flatten(output)
    written = pytree.treespec_dumps(tree)
    assert "spectok.QuantizerOutput" in written
    assert pytree.tree_unflatten(leaves, pytree.treespec_loads(written)) == output


# -- graphs ----------------------------------------------------------------------------------------


def traced(names):
    """Return what went wrong where tokenizers are compiled and exported, in a new interpreter."""
    words = [sys.executable, str(Path(__file__).with_name("graphs.py")), *names]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_encode_and_decode_are_whole_graphs_that_can_be_exported():
    assert traced(QUICK) == {}


@pytest.mark.slow
def test_those_of_every_tokenizer_are_too():
    assert traced([name for name in list_tokenizers() if name not in QUICK]) == {}


# -- half precision --------------------------------------------------------------------------------


def train_in(dtype: torch.dtype, model) -> None:
    """Take three steps as the trainer does, without autocast."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad] or [nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for _ in range(3):
        losses = model((torch.rand(4, *model.image_shape) * 2 - 1).to(dtype)).losses
        objective = torch.stack([value.float() for value in losses.values()]).sum()
        assert objective.isfinite()
        optimizer.zero_grad()
        if objective.requires_grad:  # a frozen network with codes that follow means has none
            objective.backward()
        model.before_step()
        optimizer.step()
        model.after_step([optimizer])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "latentvq" else ()) for n in list_tokenizers()],
)
def test_every_tokenizer_trains_in_bfloat16(name):
    model = small_tokenizer(name).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    train_in(torch.bfloat16, model)


@pytest.mark.parametrize("name", list_quantizers())
def test_every_quantizer_trains_in_bfloat16(name):
    model = small_tokenizer("vqvae", quantizer=name).to(torch.bfloat16)
    train_in(torch.bfloat16, model)
    codes = [p for p in model.quantizer.state_dict().values() if p.is_floating_point()]
    assert {p.dtype for p in codes} <= {torch.float32, torch.float64}
