"""What decides how fast a run is, and not what it learns: workers, precision, compiling."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from spectok.data import DataConfig, build_dataset
from spectok.distributed import draw_per_sample, shared_draws
from spectok.errors import ConfigError, TrainingError
from spectok.machine import usable_cores
from spectok.recipes.yaml12 import parse_yaml
from spectok.training import TokenizerRecipe, TrainConfig, load_tokenizer_recipe
from spectok.training.batches import EpochDataset
from spectok.training.compiling import check_compiler, compiled
from spectok.training.log import read_log
from spectok.training.precision import check_agreed, choose_precision, settled
from spectok.training.same_run import check_same_run
from spectok.training.workers import choose_workers, is_in_memory

GPU = torch.device("cuda")
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

# -- workers ---------------------------------------------------------------------------------------


class OnDisk:
    """Items of 4 kB that are read from somewhere."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"images": torch.zeros(1000), "label": 3}


@pytest.fixture
def cores(monkeypatch):
    """Let this process have so many cores, and plenty of shared memory."""

    def give(number, free=1 << 40):
        monkeypatch.setattr("spectok.training.workers.usable_cores", lambda: number)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    return give


def workers(dataset, device=GPU, **options):
    return choose_workers(TrainConfig(batch_size=10, **options), dataset, device)


@pytest.mark.parametrize(("number", "chosen"), [(1, 0), (2, 1), (6, 5), (64, 8)])
def test_auto_leaves_a_core_to_the_training(cores, capsys, number, chosen):
    cores(number)
    assert workers(OnDisk()) == chosen
    assert capsys.readouterr().out.startswith(f"train.num_workers=auto: {chosen}, ")


def test_auto_shares_the_cores_with_the_other_processes_here(cores, monkeypatch):
    cores(8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers(OnDisk()) == 3


def test_auto_starts_none_on_a_cpu_nor_for_what_is_in_memory(cores, tmp_path, capsys):
    cores(8)
    assert workers(OnDisk(), torch.device("cpu")) == 0
    digits = DataConfig(name="digits", limit=10)
    held, shifted = build_dataset(digits), build_dataset(digits.model_copy(update={"max_shift": 1}))
    assert (workers(held), workers(shifted)) == (0, 7)
    wrapped = SimpleNamespace(dataset=held)
    assert is_in_memory(wrapped)
    assert not is_in_memory(SimpleNamespace(dataset=OnDisk()))
    assert "they are in memory" in capsys.readouterr().out


def test_auto_fills_no_more_than_half_of_the_shared_memory(cores, monkeypatch):
    batch = 10 * 4000
    cores(8, free=2 * 2 * 3 * batch)  # two workers, which keep two batches and make a third
    assert workers(OnDisk()) == 2
    cores(8, free=batch)
    assert workers(OnDisk()) == 0


def test_auto_starts_none_where_processes_are_not_forked(cores, monkeypatch):
    cores(8)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda **_: "spawn")
    assert workers(OnDisk()) == 0


def test_a_number_of_workers_is_taken_without_a_word(cores, capsys):
    assert workers(OnDisk(), torch.device("cpu"), num_workers=3) == 3
    assert capsys.readouterr().out == ""


def test_cores_are_those_of_the_affinity_and_of_the_container(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr("spectok.machine._QUOTA", quota)
    assert usable_cores() == 16
    for content, expected in [("max 100000", 16), ("450000 100000", 4), ("50000 100000", 1)]:
        quota.write_text(content + "\n")
        assert usable_cores() == expected


@pytest.mark.parametrize("value", ["many", -1, 1001, 1.5, True, None])
def test_wrong_workers_are_one_line(value):
    with pytest.raises(ConfigError) as caught:
        load_tokenizer_recipe("smoke/vqvae", [("train.num_workers", value)])
    rule = "train.num_workers: Input should be 'auto' or a whole number from 0 to 1,000"
    assert str(caught.value).startswith(rule)
    assert "\n" not in str(caught.value)


class Several:
    """Items that are read several at a time."""

    def __init__(self):
        self.asked = []

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitems__(self, rows):
        self.asked.append((self.epoch, rows))
        return [(self.epoch, row) for row in rows]


def test_a_batch_is_read_at_once_within_each_epoch():
    data = Several()
    keys = [(0, 3), (0, 1), (1, 2)]
    assert EpochDataset(data).__getitems__(keys) == keys
    assert data.asked == [(0, [3, 1]), (1, [2])]


# -- precision -------------------------------------------------------------------------------------


def capable(monkeypatch, *, cpu=False, gpu=False):
    monkeypatch.setattr("spectok.training.precision.cpu_computes_bf16", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_what_the_device_computes(monkeypatch, fast):
    expected = "bf16" if fast else "no"
    capable(monkeypatch, cpu=fast, gpu=not fast)
    assert choose_precision("cpu")[0] == expected
    capable(monkeypatch, cpu=not fast, gpu=fast)
    assert choose_precision("cuda")[0] == expected
    assert choose_precision("mps")[0] == "no"


def test_a_processor_that_converts_does_not_compute_bf16(monkeypatch):
    from spectok.training.precision import cpu_computes_bf16

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    probe = "_is_mkldnn_bf16_supported"
    for mkldnn, instructions in [(True, False), (False, True), (True, True)]:
        monkeypatch.setattr(torch.ops.mkldnn, probe, lambda m=mkldnn: m, raising=False)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda i=instructions: i, raising=False)
        assert cpu_computes_bf16() == (mkldnn and instructions)


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, train, monkeypatch, capsys, losses):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)
    capable(monkeypatch, cpu=True)
    options = {"mixed_precision": "auto", "save_every": 2}
    train(tmp_path / "run", steps=2, **options)
    assert (
        "train.mixed_precision=auto: bf16 (this processor computes it)" in capsys.readouterr().out
    )
    recipe = parse_yaml((tmp_path / "run" / "recipe.yaml").read_text(), "recipe.yaml")
    assert recipe["train"]["mixed_precision"] == "bf16"
    assert "mixed_precision: bf16" in (tmp_path / "run" / "model" / "README.md").read_text()

    capable(monkeypatch, cpu=False)  # the run moves to another machine
    whole = train(tmp_path / "run", steps=4, resume=True, **options)
    assert "bf16 (the run began with it)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^train\.mixed_precision: the run to resume has 'bf16'"):
        train(tmp_path / "run", steps=5, resume=True, mixed_precision="no")
    straight = train(tmp_path / "straight", steps=4, mixed_precision="bf16")
    assert losses(straight.history) == losses(whole.history)


def test_auto_is_no_other_run(tmp_path):
    old = {"train": {"mixed_precision": "bf16"}, "tokenizer": {"name": "x"}}
    check_same_run(old, {**old, "train": {"mixed_precision": "auto"}})
    with pytest.raises(ConfigError):
        check_same_run(old, {**old, "tokenizer": {"name": "auto"}})
    fixed = TrainConfig(mixed_precision="fp16")
    assert settled(fixed, tmp_path, False) is fixed


def test_processes_that_chose_differently_stop(monkeypatch):
    monkeypatch.setattr("spectok.training.precision.from_main", lambda _: "bf16")
    check_agreed(TrainConfig(mixed_precision="bf16"))
    with pytest.raises(TrainingError, match="the main process computes in 'bf16' and this one in"):
        check_agreed(TrainConfig())


# -- compiling -------------------------------------------------------------------------------------


def test_without_a_compiler_one_line_says_so_before_anything_is_written(
    tmp_path, train, monkeypatch
):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    remedy = r"^train\.compile: needs the C\+\+ compiler no-such-compiler -O2, which is not there;"
    with pytest.raises(ConfigError, match=remedy) as caught:
        train(tmp_path / "run", compile=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("CXX", "")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    check_compiler()


def test_compiling_and_recomputing_are_not_combined(tmp_path, train):
    with pytest.raises(ConfigError, match=r"^train\.compile: is not supported with"):
        train(tmp_path / "run", compile=True, gradient_checkpointing=True)


@pytest.mark.slow
def test_a_compiled_run_trains_saves_and_resumes_as_any_other(
    tmp_path, train, qgvae, without_code, losses
):
    options = {"steps": 4, "save_every": 2, "ema_decay": 0.9}
    eager = train(tmp_path / "eager", qgvae, **options)
    fast = train(tmp_path / "fast", qgvae, compile=True, **options)
    expected = [record["loss"] for record in eager.history]
    assert [record["loss"] for record in fast.history] == pytest.approx(expected, rel=1e-5)
    for name in ("model/diffusion_pytorch_model.safetensors", "checkpoints/step-00000004"):
        ours, theirs = tmp_path / "fast" / name, tmp_path / "eager" / name
        assert (names(ours), names(theirs)) == (names(theirs), names(theirs))
    assert fast.model._compiled_call_impl is None
    assert not any("forward" in vars(module) for module in fast.model.modules())

    longer = train(tmp_path / "fast", qgvae, resume=True, **options | {"steps": 6})
    again = train(tmp_path / "eager", qgvae, compile=True, resume=True, **options | {"steps": 6})
    assert [r["loss"] for r in longer.history] == pytest.approx(
        [r["loss"] for r in again.history], rel=1e-5
    )


def names(path):
    """Return the names of the tensors in a file, or of the files in a folder and their tensors."""
    if path.is_dir():
        return {p.name: names(p) for p in path.iterdir() if p.suffix == ".safetensors"}
    return sorted(load_file(path))


def test_draws_are_the_same_and_what_was_changed_is_put_back(without_code):
    class Draws(torch.nn.Module):
        def forward(self, x):
            return x + draw_per_sample(len(x)) + torch.nn.functional.dropout(x, 0.5)

    from spectok import distributed

    model, before, x = Draws(), distributed.draw_uniform, torch.ones(4)
    found = []
    for compile in (False, True):
        with compiled(model, TrainConfig(compile=compile), alone=True):
            for seed in range(3):
                torch.manual_seed(seed)
                with shared_draws(seed):
                    found.append(model(x))
    assert all(a.equal(b) for a, b in zip(found[:3], found[3:]))
    assert distributed.draw_uniform is before


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction\nand more")

    torch._dynamo.reset()
    monkeypatch.setattr("spectok.training.compiling.BACKEND", broken)
    model = torch.nn.Linear(2, 1)
    with (
        pytest.raises(TrainingError, match=r"^train\.compile: .*leave it off$") as caught,
        compiled(model, TrainConfig(compile=True), alone=True),
    ):
        model(torch.zeros(1, 2))
    assert "\n" not in str(caught.value)
    assert model(torch.zeros(1, 2)).shape == (1, 1)


@pytest.mark.slow
@NEEDS_COMPILER
def test_generated_code_trains_alike(tmp_path, train, vqvae):
    options = {"steps": 6, "gradient_accumulation": 2}
    eager = train(tmp_path / "eager", vqvae, **options)
    fast = train(tmp_path / "fast", vqvae, compile=True, **options)
    expected = [record["loss"] for record in eager.history]
    assert [record["loss"] for record in fast.history] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_two_compiled_processes_equal_one_that_is_not(
    tmp_path, train, fork_ranks, qgvae, monkeypatch
):
    monkeypatch.setattr("spectok.training.compiling.BACKEND", "aot_eager")
    options = {"steps": 4, "save_every": 4}
    one = train(tmp_path / "one", qgvae, batch_size=8, **options)  # not compiled: see the two
    compiling = {"batch_size": 4, "compile": True, **options}
    arguments = (train, tmp_path / "two", qgvae, compiling)
    assert fork_ranks(train_with, *arguments) == [0, 0]
    expected = [record["loss"] for record in one.history]
    found = [record["loss"] for record in read_log(tmp_path / "two" / "log.jsonl")]
    assert found == pytest.approx(expected, rel=1e-5)
    checkpoint = "checkpoints/step-00000004"
    assert names(tmp_path / "two" / checkpoint) == names(tmp_path / "one" / checkpoint)


def train_with(train, output, tokenizer, options):
    """Train in one of two processes; leave behind whether it was compiled."""
    result = train(output, tokenizer, **options)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    (output / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(graphs))
    assert graphs
    assert result.step == options["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cvqvae", "dqvae", "favae", "fqvae", "hrvqvae", "rqvae"])
def test_tokenizers_train_alike_when_compiled(tmp_path, without_code, name):
    logs = [losses_of(name, tmp_path / how, how) for how in ("false", "true")]
    assert logs[1] == pytest.approx(logs[0], rel=1e-2)
    assert logs[1][0] == pytest.approx(logs[0][0], rel=1e-5)


@pytest.mark.slow
def test_a_discriminator_judges_a_compiled_tokenizer(tmp_path, without_code):
    logs = [losses_of("vqgan", tmp_path / how, how) for how in ("false", "true")]
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)


def losses_of(name, output, compile):
    """Return the losses of a few steps of a smoke recipe."""
    from spectok.training import train_tokenizer

    settings = ["steps=3", "log_every=1", "sample_every=null", f"compile={compile}"]
    recipe = load_tokenizer_recipe(f"smoke/{name}", [f"train.{word}" for word in settings])
    assert isinstance(recipe, TokenizerRecipe)
    return [record["loss"] for record in train_tokenizer(recipe, output).history]
