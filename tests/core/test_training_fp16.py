"""In fp16 a step whose scaled gradients overflow is not taken, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

import pytest
import torch
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file
from torch import nn

import spectok.training.loop
import spectok.training.tokenizer
from spectok.loading import create_quantizer
from spectok.training import Callbacks, Run, StepOutput, TrainConfig, fit
from spectok.training.checks import codebook_state, hash_bits
from spectok.training.launch import accelerated
from spectok.training.log import read_log
from spectok.training.objective import Objective

SCALE = 2.0**16
STEEP = 1e35  # a slope that is finite, and times the scale is not


@contextmanager
def scaled(config, output):
    """Start Accelerate as a GPU in fp16 would have it, with its real gradient scaler, on the CPU.

    The arithmetic stays in float32: only gradients are scaled, checked and unscaled.
    """
    with accelerated(config, output) as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.autocast_handler = AutocastKwargs(enabled=False)
        yield accelerator


class Overflowing(Objective):
    """A tokenizer's objective that is far too steep at some steps, on the last rank."""

    at = (2, 4)

    def __call__(self, module, batch):
        output = super().__call__(module, batch)
        last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", 1)) - 1)
        slope = STEEP if last and self.step in self.at else 0.0
        output.losses["slope"] = slope * next(module.parameters()).sum()
        return output


@pytest.fixture(autouse=True)
def in_fp16(monkeypatch):
    monkeypatch.setattr(spectok.training.loop, "accelerated", scaled)
    monkeypatch.setattr(spectok.training.tokenizer, "Objective", Overflowing)


def test_hooks_are_called_only_for_steps_that_are_taken(tmp_path):
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 1), []
    step = iter(range(100))

    def compute_losses(module, batch):
        slope = STEEP if next(step) in (0, 2) else 0.0
        output = module(batch)
        return StepOutput({"error": output.square().mean(), "slope": slope * output.sum()})

    def note(name):
        return lambda model, *_: seen.append((name, model.weight.detach().clone()))

    callbacks = Callbacks(
        before_step=note("before"), after_step=note("after"), skip_step=note("skip")
    )
    config = TrainConfig(steps=4, batch_size=2, log_every=1, max_grad_norm=1.0, ema_decay=0.5)
    result = fit(
        model, list(torch.randn(8, 4)), compute_losses, config, Run(tmp_path), callbacks=callbacks
    )
    assert [name for name, _ in seen] == ["skip", "before", "after", "skip", "before", "after"]
    weights = [weight for _, weight in seen]
    assert weights[0].equal(weights[1])
    assert not weights[1].equal(weights[2])
    assert weights[2].equal(weights[3])
    assert ["grad_norm" in record for record in result.history] == [False, True, False, True]
    state = torch.load(result.checkpoint / "state.pt", weights_only=True)
    assert state["ema"]["num_updates"] == 2
    assert state["scaler"]["scale"] == SCALE / 4


def test_resets_go_on_after_an_overflow(tmp_path, train, qgvae):
    model = train(tmp_path, qgvae, steps=9).model
    assert int(model.quantizer.num_steps) == 7
    assert model.quantizer.magnitude.isfinite().all()
    assert model.quantizer.magnitude.count_nonzero()


@pytest.mark.parametrize("kind", ["vqvae", "qgvae"])
def test_a_run_resumes_bitwise_after_a_step_that_was_left_out(
    tmp_path, train, losses, request, kind
):
    """Step 5 is left out, and the checkpoint comes right after it."""
    tokenizer = request.getfixturevalue(kind)
    straight = train(tmp_path / "a", tokenizer, steps=12)
    train(tmp_path / "b", tokenizer, steps=5)
    resumed = train(tmp_path / "b", tokenizer, steps=12, resume=True)
    assert losses(resumed.history) == losses(straight.history)
    name = "model/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
    assert all(ours[key].equal(theirs[key]) for key in ours)


def train_rank(train, output, tokenizer):
    result = train(output, tokenizer, batch_size=4)
    hashes = {name: int(hash_bits(t)) for name, t in codebook_state(result.model).items()}
    (output / f"codebooks-{os.environ['RANK']}.json").write_text(json.dumps(hashes))


@pytest.mark.parametrize("kind", ["vqvae", "qgvae"])
def test_an_overflow_on_one_rank_skips_the_step_on_both(tmp_path, train, fork_ranks, request, kind):
    assert fork_ranks(train_rank, train, tmp_path, request.getfixturevalue(kind)) == [0, 0]
    ranks = [json.loads((tmp_path / f"codebooks-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len(read_log(tmp_path / "log.jsonl")) == 12


QUANTIZERS = {
    "vq": {},
    "ema": {"revive_every": 1, "revive_below": 0.5},
    "cvq": {},
    "cvq_pearson": {"anchor": "random"},
    "tree": {"branching": [4, 4], "update": "ema", "revive_every": 1},
    "rq": {"revive_every": 1, "revive_below": 0.5},
    "hq": {"num_parts": 2},
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_step_that_is_left_out_does_not_count_in_the_next(name):
    def steps(*calls):
        torch.manual_seed(0)
        sizes = {"dim": 4, "num_tokens": 6, "codebook_size": 16}
        quantizer = create_quantizer(name, **sizes, **QUANTIZERS[name]).train()
        for seed, call in calls:
            torch.manual_seed(seed)
            quantizer(torch.randn(8, 6, 4))
            getattr(quantizer, call)()
        return quantizer.state_dict()

    expected = steps((0, "after_step"), (2, "after_step"))
    skipped = steps((0, "after_step"), (1, "skip_step"), (2, "after_step"))
    assert all(value.equal(expected[key]) for key, value in skipped.items())
