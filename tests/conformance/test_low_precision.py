"""Training under bfloat16 autocast, long enough for codebooks to start, move and be revived."""

from __future__ import annotations

import pytest
import torch

from spectok import list_quantizers, list_tokenizers
from spectok.testing.learners import ImageLearner
from spectok.testing.small import small_tokenizer
from spectok.tokenizer import ImageTokenizer

STEPS = 200


def train_in_bfloat16(model: ImageTokenizer) -> None:
    """Train with Adam as the trainer does, checking every loss and every gradient."""
    learner = ImageLearner(model).train()
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for step in range(STEPS):
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16):
            losses = learner(learner.batch(4)).losses
        for name, value in losses.items():
            assert value.isfinite(), f"{name} is {value.item()} in step {step + 1}"
        objective = torch.stack([value.float() for value in losses.values()]).sum()
        optimizer.zero_grad()
        objective.backward()
        for name, parameter in model.named_parameters():
            finite = parameter.grad is None or parameter.grad.isfinite().all()
            assert finite, f"the gradient of {name} is not finite in step {step + 1}"
        model.before_step()
        optimizer.step()
        model.after_step([optimizer])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer", "quantizer"),
    [(name, None) for name in list_tokenizers()] + [("vqvae", name) for name in list_quantizers()],
)
def test_two_hundred_steps_under_autocast_stay_finite(tokenizer, quantizer):
    torch.manual_seed(0)
    model = small_tokenizer(tokenizer, **({"quantizer": quantizer} if quantizer else {}))
    train_in_bfloat16(model)
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    assert [name for name, value in state.items() if not value.isfinite().all()] == []
