"""How CUDA is let round: TF32, deterministic kernels; a CPU computes the same either way."""

from __future__ import annotations

import pytest
import torch
from accelerate import PartialState

from spectok.errors import TrainingError
from spectok.quantizers import nearest_codes
from spectok.testing.small import small_quantizer
from spectok.training import TrainConfig
from spectok.training.launch import arithmetic


@pytest.fixture(params=["cpu", "cuda"])
def kind(request, monkeypatch):
    """Let processes compute on a CPU, and on a GPU that nothing is asked of."""
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device(request.param))
    return request.param


def test_tf32_is_for_cuda_alone_and_for_the_run_alone(kind):
    for wanted in (True, False):
        with arithmetic(TrainConfig(tf32=wanted)):
            allowed = kind == "cuda" and wanted
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", ["vq", "tree", "cvq_pearson"])
def test_quantizers_never_choose_codes_in_tf32(name, monkeypatch):
    seen, product = [], torch.baddbmm

    def spy(*arguments, **options):
        seen.append(torch.get_float32_matmul_precision())
        return product(*arguments, **options)

    monkeypatch.setattr(torch, "baddbmm", spy)
    quantizer = small_quantizer(name).train()
    torch.set_float32_matmul_precision("high")
    try:
        quantizer(torch.randn(4, 16, 8))
        quantizer.after_step()
        nearest_codes(torch.randn(1, 4, 8), torch.randn(1, 5, 8))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen and set(seen) == {"highest"}  # noqa: PT018 - nothing seen would prove nothing


def test_deterministic_is_for_the_run_alone(kind, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with arithmetic(TrainConfig(deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_that_cannot_be_deterministic_is_one_line(kind):
    def put():
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    with arithmetic(TrainConfig()):
        put()
    with pytest.raises(TrainingError) as caught, arithmetic(TrainConfig(deterministic=True)):
        put()
    assert str(caught.value) == (
        "train.deterministic: put_ does not have a deterministic implementation; leave it off"
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_losses_on_a_cpu_are_the_same_either_way(tmp_path, train, qgvae, losses):
    runs = [{}, {"tf32": False}, {"deterministic": True}]
    found = [
        losses(train(tmp_path / str(i), qgvae, steps=3, log_every=1, **options).history)
        for i, options in enumerate(runs)
    ]
    assert found[0] == found[1] == found[2]
