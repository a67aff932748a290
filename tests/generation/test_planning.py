"""Plans: against what the allocator reports of a real step, and in their arithmetic."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map

from spectok import load_tokenizer
from spectok.errors import ConfigError
from spectok.planning import Hardware, StepCost, Stored, Subject, make_plan, measure_step
from spectok.planning.plan import memory_per_gpu, shown
from spectok.planning.storage import StorageWatch, storage_bytes
from spectok.planning.subjects import blank_perceptual
from spectok.recipes.files import list_recipes
from spectok.training import Callbacks, Phase, StepOutput, TrainConfig
from spectok.training.batches import seeded
from spectok.training.ema import WeightEMA
from spectok.training.launch import accelerated
from spectok.training.loop import LoopState, prepare, train_on_batch
from spectok.training.window import Window
from spectok_generation.cli.plan import find

COST = StepCost(
    parameters=100,
    weights=400,
    gradients=400,
    optimizer=800,
    ema=400,
    statistics=40,
    buffers=10,
    frozen=50,
    peak=5000,
    flops=10**12,
    unit=100,
    rest=200,
    samples=16,
)
WITHIN = 0.1
PLANNED = sorted(n for n in list_recipes() if "clip" not in n and not n.startswith("demo/"))


def allocated_at_peak(make, config, folder):
    """Return the most bytes that torch's allocator held while two steps were really computed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        subject = make()
        batch = tree_map(
            lambda leaf: torch.zeros_like(leaf, device="cpu") if torch.is_tensor(leaf) else leaf,
            subject.batch,
        )
        with accelerated(config, folder) as accelerator:
            main = Phase("model", subject.model, lambda m, b, _: subject.compute_losses(m, b))
            phases = [prepare(accelerator, config, p) for p in (main, *subject.phases)]
            ema = None if config.ema_decay is None else WeightEMA(subject.model, config.ema_decay)
            state = LoopState(accelerator, config, subject.callbacks, phases, ema, Window())
            for step in range(2):
                for micro in range(config.gradient_accumulation):
                    with seeded(0, 10 * step + micro, 0):
                        train_on_batch(state, batch, step)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


RECIPES = {
    "tokenizer": ("vqvae/digits", ["train.batch_size=32", "train.gradient_accumulation=2"]),
    "prior": ("smoke/prior_gpt", ["train.batch_size=64", "prior.size=gpt-micro"]),
    "maskgit": ("smoke/prior_maskgit", ["train.batch_size=64", "prior.size=maskgit-micro"]),
    "ldm": ("smoke/prior_ldm", ["train.batch_size=64", "prior.channels=[16, 32]"]),
}


def slow(kind):
    return pytest.param(kind, marks=pytest.mark.slow) if kind == "ldm" else kind


@pytest.mark.parametrize("kind", [slow(kind) for kind in RECIPES])
def test_a_plan_is_within_a_tenth_of_the_allocators_peak(tmp_path, kind):
    name, settings = RECIPES[kind]
    subject, _, config = find(name, settings, False)
    planned = measure_step(lambda: subject, config)
    made = []

    def real():
        made.append(find(name, settings, False, "cpu")[0])
        return made[0]

    measured = allocated_at_peak(real, config, tmp_path)
    assert planned.peak == pytest.approx(measured, rel=WITHIN)
    assert memory_per_gpu(planned, Hardware()) == planned.peak
    parameters = [p for p in made[0].model.parameters() if p.requires_grad]
    assert planned.parameters == sum(p.numel() for p in parameters)


def test_shards_divide_what_they_divide_and_gather_blocks():
    plain, data_parallel = Hardware(), Hardware(gpus=4)
    assert memory_per_gpu(COST, plain) == COST.peak
    assert memory_per_gpu(COST, data_parallel) == COST.peak + COST.gradients
    divided = COST.weights + COST.gradients + COST.optimizer + COST.ema
    gathered = 2 * COST.unit + COST.rest + COST.unit + COST.rest
    expected = COST.peak - divided + divided / 4 + gathered
    assert memory_per_gpu(COST, Hardware(gpus=4, fsdp=True)) == expected


def test_time_and_disk_follow_from_the_rows_they_name():
    config = TrainConfig(steps=7200, mixed_precision="bf16", keep_last=1)
    hardware = Hardware(gpus=2, utilisation=0.5)
    stored = Stored(pixels=192, token_bytes=8, tokens=4)
    rows = {row.name: row.value for row in make_plan(COST, config, hardware, stored, images=10)}
    seconds = 1e12 / (312e12 * 0.5)
    assert rows["seconds per step"] == pytest.approx(seconds)
    assert rows["images per step"] == 32
    assert rows["tokens per second"] == pytest.approx(4 * 32 / seconds)
    assert rows["hours"] == pytest.approx(2 * seconds)
    assert rows["GPU hours"] == pytest.approx(4 * seconds)
    assert rows["token cache"] == 80
    assert rows["images in shards"] == 1920
    assert rows["checkpoints"] == 2 * (400 + 40 + 10 + 800 + 400)
    faster = make_plan(COST, config, Hardware(2, tflops=624.0, utilisation=0.5), stored)
    assert {row.name: row.value for row in faster}["hours"] == pytest.approx(rows["hours"] / 2)
    assert all(row.formula for row in faster)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_every_recipe_of_a_tokenizer_or_prior_is_planned(name):
    planned = measure_step(lambda: find(name, [], False)[0], find(name, [], False)[2])
    assert planned.flops > 0
    assert planned.peak > planned.weights


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"tflops": 0.0}, {"utilisation": 1.5}])
def test_hardware_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ConfigError):
        Hardware(**wrong)


def linear(width, batch):
    model = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, 1))

    def losses(module, inputs):
        return StepOutput({"mean": module(inputs["x"]).mean()})

    return Subject(model, losses, {"x": torch.zeros(batch, width)}, Callbacks())


def test_operations_of_a_known_network():
    config = TrainConfig(batch_size=8, gradient_accumulation=3)
    cost = measure_step(lambda: linear(16, 8), config)
    forward = 2 * 8 * (16 * 16 + 16)
    backward = forward + 2 * 8 * 16  # of the weights of both; inputs need no gradient
    assert cost.flops == 3 * (forward + backward)
    assert cost.samples == 24
    assert cost.parameters == 16 * 16 + 17
    assert cost.weights == cost.gradients == 4 * cost.parameters
    assert cost.optimizer == 8 * cost.parameters + 3 * 4  # and a count per tensor


def test_a_measurement_leaves_nothing_behind(tmp_path):
    spec = ("smoke/prior_gpt", ["train.batch_size=2"], False)
    first = measure_step(lambda: find(*spec)[0], find(*spec)[2])
    assert measure_step(lambda: find(*spec)[0], find(*spec)[2]) == first
    subject, _, _ = find(*spec, "cpu")
    losses = subject.compute_losses(subject.model, subject.batch).losses
    assert math.isfinite(losses["nll"].item())


@pytest.mark.parametrize("kind", [slow(kind) for kind in ("prior", "ldm", "tokenizer")])
def test_checkpointed_blocks_cost_memory_less_and_work_more(kind):
    name, settings = RECIPES[kind]
    kept, again = (
        measure_step(lambda w=w: find(name, w, False)[0], find(name, w, False)[2])
        for w in (settings, [*settings, "train.gradient_checkpointing=true"])
    )
    assert again.activations < kept.activations
    assert kept.flops < again.flops < 1.5 * kept.flops
    assert (again.weights, again.optimizer) == (kept.weights, kept.optimizer)


def test_storage_is_counted_once_and_until_it_is_dropped():
    with StorageWatch() as watch:
        a = torch.zeros(100)
        view = a.view(10, 10)
        b = a + 1
        assert watch.live == watch.peak == 800
        del b
        assert (watch.live, watch.peak) == (400, 800)
        watch.restart()
        assert watch.peak == 400
        del a
        assert watch.live == 400
        del view
        assert watch.live == 0
    tensor = torch.zeros(8)
    assert storage_bytes([tensor, tensor[:4], None, "text"]) == 32


def test_lpips_needs_no_weights_to_be_planned():
    from spectok.losses import LPIPS

    for network in ("vgg", "alex", "squeeze"):
        blank = blank_perceptual(network)
        assert isinstance(blank, LPIPS)
        assert sum(p.numel() for p in blank.parameters()) > 10**5


def test_numbers_for_people():
    assert shown(3 << 30, "bytes") == "3.00 GiB"
    assert shown(5, "bytes") == "5 bytes"
    assert shown(2.5e12, "FLOP") == "2.50 TFLOP"
    assert shown(0.125, "s") == "0.125 s"
    assert shown(12345.6, "") == "12,346"


def test_the_command(spectok):
    words = ["smoke/prior_gpt", "train.batch_size=4", "--gpus", "2", "--images", "1000"]
    status, out, err = spectok("plan", *words, "--fsdp", "--explain")
    assert not status, err
    assert "gathered weights" in out
    assert "/ 2 GPUs" in out
    status, out, err = spectok("plan", *words, "--json")
    found = json.loads(out)
    assert found["memory per GPU"]["total"]["value"] > 0
    assert found["disk"]["token cache"]["value"] == 1000 * math.ceil(8 * 4 / 8)
    parts = [row["value"] for name, row in found["memory per GPU"].items() if name != "total"]
    assert sum(parts) == found["memory per GPU"]["total"]["value"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smoke/vqvae", "--gpus", "2", "--fsdp"], "tokenizers are not sharded"),
        (
            ["smoke/prior_gpt", "train.mixed_precision=fp16", "--gpus", "2", "--fsdp"],
            "FSDP: it is not supported with fp16",
        ),
        (["smoke/prior_gpt", "train.compile=true", "--fsdp"], "FSDP: train.compile"),
        (
            ["smoke/vqvae", "train.compile=true", "train.gradient_checkpointing=true"],
            "train.compile: is not supported with train.gradient_checkpointing",
        ),
        (["smoke/clip"], "a plan is for a tokenizer or a prior"),
        (["smoke/nothing"], "no recipe smoke/nothing"),
        (["smoke/vqvae", "--gpus", "0"], "--gpus: 0"),
        (
            ["smoke/vqvae", "tokenizer.num_blocks=0", "train.gradient_checkpointing=true"],
            "has no blocks to compute again",
        ),
    ],
)
def test_what_has_no_plan_is_refused_in_one_line(spectok, words, expected):
    status, _, err = spectok("plan", *words)
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


def test_a_key_is_planned_with_its_defaults(spectok):
    status, out, err = spectok("plan", "vqvae", "train.batch_size=1", "tokenizer.image_size=16")
    assert not status, err
    count = sum(
        p.numel() for p in load_tokenizer("vqvae", image_size=16, in_channels=1).parameters()
    )
    assert f"{count:,}" in out
