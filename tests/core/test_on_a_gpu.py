"""The pretended GPU finds what it should, and core's losses and trainings pass on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectok.losses import focal_frequency, l1, l2
from spectok.losses.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from spectok.plugins import registry
from spectok.testing.pretend import PretendDevice
from spectok.testing.pretended_training import training_on
from spectok.testing.small import small_tokenizer
from spectok.training.recipe import load_tokenizer_recipe
from spectok.training.tokenizer import train_tokenizer

READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "int": lambda x: int(x.argmax()),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "bincount": lambda x: torch.bincount(x.long().flatten().abs()),
    "tolist": lambda x: x.tolist(),
    "unique": lambda x: torch.unique(x),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask of several": lambda x: x.__setitem__(x[:, 0] > 0, torch.ones(3, device=x.device)),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x[0].long().abs(), dim=1),
    "multinomial": lambda x: x.abs().multinomial(1),
    "allclose": lambda x: torch.allclose(x, x),
    "standard deviations": lambda x: torch.normal(0.0, x.abs()),
    "cholesky": lambda x: torch.linalg.cholesky(x.T @ x),
    "checked inverse": lambda x: torch.linalg.inv_ex(x[:3], check_errors=True),
    "eigenvalues": lambda x: torch.linalg.eigh(x.T @ x),
    "singular values": lambda x: torch.linalg.svd(x),
    "rank": lambda x: torch.linalg.matrix_rank(x),
    "max_norm": lambda x: F.embedding(torch.zeros_like(x[0], dtype=torch.int64), x, max_norm=1.0),
    "classes to be counted": lambda x: F.one_hot(x.long().abs()),
}
COPIES = {
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "to": lambda x: torch.ones(2).to(x.device),
    "list as index": lambda x: x[:, [0, 2]],
    "copy_": lambda x: x.copy_(torch.ones(4, 3)),
}
NEITHER = {
    "arithmetic": lambda x: (x * 2 + 1).softmax(-1).sum(),
    "factories": lambda x: torch.rand(3, device=x.device) + x.new_zeros(3) + torch.ones_like(x[0]),
    "range": lambda x: x[:, torch.arange(2, device=x.device)],
    "a number": lambda x: x.__setitem__((0, 0), 3.0),
    "a number by mask": lambda x: x.__setitem__(x > 0, 0.0),
    "a scalar of the CPU": lambda x: x + torch.tensor(1.0),
    "counted": lambda x: x.repeat_interleave(2, dim=0),
    "not waited for": lambda x: torch.ones(2).to(x.device, non_blocking=True),
    "where of three": lambda x: torch.where(x > 0, x, 0),
    "one deviation": lambda x: torch.normal(x, 1.0),
    "unchecked inverse": lambda x: torch.linalg.inv_ex(x[:3]),
    "classes": lambda x: F.one_hot(x.long().abs().clamp(max=5), 6) + x[..., None],
    "quantile": lambda x: torch.quantile(x, 0.5, dim=1) + x[:, 0],
    "causal attention": lambda x: (
        F.scaled_dot_product_attention(*[x[None].requires_grad_()] * 3, is_causal=True)
        .sum()
        .backward()
    ),
    "shape": lambda x: x.view(-1, x.shape[1]).float().to(x.device).to(torch.float64),
}


@pytest.fixture
def gpu():
    with PretendDevice("cuda") as device:
        yield device


@pytest.mark.parametrize(
    ("operation", "kinds"),
    [(f, {"read"}) for f in READS.values()]
    + [(f, {"copy"}) for f in COPIES.values()]
    + [(f, set()) for f in NEITHER.values()],
    ids=[*(f"read {n}" for n in READS), *(f"copy {n}" for n in COPIES), *NEITHER],
)
def test_waits_are_found_and_nothing_else(gpu, operation, kinds):
    x = torch.randn(4, 3, device="cuda")
    operation(x)
    assert {event.kind for event in gpu.events} == kinds
    assert all("test_on_a_gpu.py" in event.place for event in gpu.events)


class Stray(torch.autograd.Function):
    @staticmethod
    def forward(_context, x):
        return x.clone()

    @staticmethod
    def backward(_context, gradient):
        return (lambda: gradient * torch.ones(3))()


STRAYS = {
    "sum": lambda x: x + torch.ones(3),
    "product": lambda x: x @ torch.ones(3, 3),
    "one inside an operation": lambda x: F.one_hot(torch.zeros(4, dtype=torch.int64), 3) + x,
    "one in a gradient": lambda x: Stray.apply(x.requires_grad_()).sum().backward(),
    "concatenation": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "numpy": lambda x: x.numpy(),
    "generator": lambda x: x.uniform_(generator=torch.Generator().manual_seed(0)),
    "factory's generator": lambda x: torch.rand(2, device="cuda", generator=torch.Generator()),
}


@pytest.mark.parametrize("operation", STRAYS.values(), ids=STRAYS)
def test_what_stays_on_the_cpu_is_an_error_that_names_the_line(gpu, operation):
    with pytest.raises(AssertionError, match=r"test_on_a_gpu\.py:\d+ in <lambda>"):
        operation(torch.randn(4, 3, device="cuda"))


def test_a_model_trains_as_on_the_cpu():
    """Values, gradients, optimiser and generators: the same numbers, with device and autocast."""
    found = {}
    for kind in ("cpu", "cuda"):
        torch.manual_seed(0)
        model, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(5, 4)
        with PretendDevice("cuda") as gpu:
            optimizer = torch.optim.AdamW(model.to(kind).parameters())
            noise = torch.empty(5, 4, device=kind).normal_(
                generator=torch.Generator(kind).manual_seed(1)
            )
            with torch.autocast(kind, torch.bfloat16):
                output = model(batch.to(kind) + noise)
            assert output.dtype == torch.bfloat16
            assert output.device.type == kind
            assert model[0].weight.is_cuda == (kind == "cuda")
            output.float().square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            assert not any(event.kind == "read" for event in gpu.events)
            found[kind] = [p.detach().to("cpu") for p in model.parameters()]
    assert all(map(torch.equal, found["cpu"], found["cuda"]))
    assert torch.ones(1).device.type == "cpu"
    assert "device" not in vars(torch.Tensor), "what was replaced is put back"


def test_float64_is_refused_as_on_mps():
    with PretendDevice("mps"), pytest.raises(AssertionError, match="float64, which MPS does not"):
        torch.ones(3, device="mps").double()


# -- losses and discriminators ---

LOSSES = {
    "l1": lambda a, b: l1(a, b),
    "l2": lambda a, b: l2(a, b),
    "frequency": lambda a, b: focal_frequency(a, b),
    "hinge": lambda a, b: hinge_discriminator(a, b) + hinge_generator(a),
    "adaptive": lambda a, b: a.mean() * adaptive_weight(a.detach(), b, 1e-4),
}


@pytest.mark.parametrize("low_precision", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_never_wait(gpu, loss, low_precision):
    fake = torch.randn(2, 3, 16, 16, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=low_precision):
        loss(fake, torch.randn(2, 3, 16, 16, device="cuda")).backward()
    assert fake.grad is not None
    assert not gpu.events, "\n".join(map(str, gpu.events))


@pytest.mark.parametrize("low_precision", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", registry.list_registered("discriminator"))
def test_discriminators_never_wait(gpu, name, low_precision):
    network = registry.get_registered("discriminator", name)(image_shape=(3, 32, 32)).to("cuda")
    for _ in range(2):  # constants are copied once
        gpu.events.clear()
        with torch.autocast("cuda", torch.bfloat16, enabled=low_precision):
            logits = network(torch.randn(2, 3, 32, 32, device="cuda"))
        logits.float().mean().backward()
    assert not gpu.events


# -- the loop itself ---


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_whole_training_runs_on_the_device_and_only_some_steps_wait(tmp_path, kind):
    settings = ["train.steps=6", "train.log_every=2", "train.sample_every=3", "train.tf32=false"]
    recipe = load_tokenizer_recipe("smoke/qggan", [*settings, "data.limit=16"])
    with PretendDevice(kind) as gpu, training_on(gpu):
        result = train_tokenizer(recipe, tmp_path / "run")
    in_steps = [event for event in gpu.events if event.step > 2]
    assert any(event.step == 0 for event in gpu.events), "saving reads values"
    assert len({event.step for event in in_steps}) < 4, "\n".join(map(str, in_steps))
    assert result.step == 6
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vqvae", "fqvae", "vqwae"])
def test_a_real_gpu_agrees_that_no_step_waits(name):
    model = small_tokenizer(name).to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.rand(4, *model.image_shape, device="cuda")
    try:
        for step in range(4):
            torch.cuda.set_sync_debug_mode("error" if step == 2 else "default")
            sum(value.float() for value in model(batch).losses.values()).backward()
            model.before_step()
            optimizer.step()
            optimizer.zero_grad()
            model.after_step([optimizer])
    finally:
        torch.cuda.set_sync_debug_mode("default")
