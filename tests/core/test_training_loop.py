"""The loop itself: what a step is, what is logged, what is saved, what stops it."""

from __future__ import annotations

import itertools
import math
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from spectok.data import DataConfig
from spectok.distributed import draw_per_sample
from spectok.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from spectok.loading import create_quantizer, load_tokenizer
from spectok.messages import silenced
from spectok.recipes.yaml12 import parse_yaml
from spectok.training import (
    Callbacks,
    Phase,
    Run,
    StepOutput,
    TokenizerRecipe,
    TrainConfig,
    fit,
    train_tokenizer,
)
from spectok.training.batches import EpochDataset, Stream, derive_seed, make_loader, read, seeded
from spectok.training.ema import WeightEMA
from spectok.training.optimizer import learning_rate_factor, make_optimizer
from spectok.training.precision import remark_slow_bf16
from spectok.training.recipe import load_tokenizer_recipe


class Points:
    """Twenty points, their index, and the epoch they were asked for in."""

    def __init__(self):
        self.x, self.epoch = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "index": index, "epoch": self.epoch}


def squared(model, batch):
    return StepOutput({"error": (model(batch["x"]) - 1).square().mean()})


def fit_points(output, compute_losses=squared, model=None, **options):
    others = {key: options.pop(key) for key in ("callbacks", "phases") if key in options}
    run = Run(output, resume=options.pop("resume", False))
    torch.manual_seed(5)
    model = nn.Linear(4, 1) if model is None else model
    settings = {"steps": 6, "batch_size": 4, "log_every": 1, "save_every": 100} | options
    config = TrainConfig.model_validate(settings)
    return fit(model, Points(), compute_losses, config, run, **others)


# -- what every process sees -----------------------------------------------------------------------


def take(**options):
    defaults = {"num_samples": 10, "batch_size": 4, "seed": 3, "first": 0, "last": 10}
    return list(Stream(**(defaults | options)))


def test_every_epoch_is_a_permutation_and_no_batch_is_short():
    batches = take()
    assert {len(batch) for batch in batches} == {4}
    keys = [key for batch in batches for key in batch]
    epochs = [[i for e, i in keys if e == epoch] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_stream_resumes_anywhere_and_splits_over_ranks():
    whole = take()
    assert take(first=7) == whole[7:]
    halves = [take(batch_size=2, rank=rank, num_ranks=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == whole


def test_data_set_smaller_than_a_batch_works():
    (batch,) = take(num_samples=3, batch_size=8, last=1)
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_reaches_the_data_set(num_workers):
    stream = Stream(20, 8, seed=0, first=0, last=8)
    for keys, batch in zip(stream, make_loader(Points(), stream, num_workers)):
        assert batch["index"].tolist() == [index for _, index in keys]
        assert batch["epoch"].tolist() == [epoch for epoch, _ in keys]


def test_data_set_without_epochs_is_fine():
    assert EpochDataset([10, 11, 12])[(4, 2)] == 12


def test_any_seed_that_a_recipe_takes_loads_data():
    loader = make_loader(Points(), Stream(20, 4, seed=10**20, first=0, last=5), num_workers=0)
    assert len(list(loader)) == 5


class Damaged(Points):
    """Points of which one cannot be read."""

    def __getitem__(self, index):
        if index == 7:
            raise DataError("image seven.png cannot be read: repair it")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_image_is_one_line_from_a_worker_too(num_workers):
    loader = make_loader(Damaged(), Stream(20, 4, seed=0, first=0, last=5), num_workers)
    with pytest.raises(DataError, match=r"^image seven\.png cannot be read: repair it$"):
        list(read(loader))


def test_random_numbers_of_a_micro_batch():
    def draw(number, rank):
        with seeded(9, number, rank):
            return torch.rand(3), draw_per_sample(3)

    (noise, shared), (noise_1, shared_1), (noise_next, shared_next) = (
        draw(0, 0),
        draw(0, 1),
        draw(1, 0),
    )
    assert shared.equal(shared_1)
    assert not shared.equal(shared_next)
    assert len({tuple(t.tolist()) for t in (noise, noise_1, noise_next)}) == 3
    assert draw(0, 0)[0].equal(noise)
    assert derive_seed(1, 2) != derive_seed(2, 1)


# -- a step ----------------------------------------------------------------------------------------


def test_accumulated_micro_batches_equal_one_big_batch(tmp_path):
    big = fit_points(tmp_path / "big", batch_size=8, learning_rate=0.1)
    small = fit_points(tmp_path / "small", batch_size=2, gradient_accumulation=4, learning_rate=0.1)
    assert [r["loss"] for r in small.history] == pytest.approx(
        [r["loss"] for r in big.history], rel=1e-5
    )
    assert big.history[-1]["loss"] < big.history[0]["loss"]


def test_callbacks_see_the_gradient_before_clipping_and_the_weights_after_the_step(tmp_path):
    seen = []

    def before(model):
        seen.append(("before", float(model.weight.grad.norm()), model.weight.detach().clone()))

    def after(model, optimizers):
        assert isinstance(optimizers[0], torch.optim.AdamW)
        seen.append(("after", None, model.weight.detach().clone()))

    fit_points(
        tmp_path,
        callbacks=Callbacks(before_step=before, after_step=after),
        gradient_accumulation=3,
        max_grad_norm=1e-4,
        steps=2,
    )
    assert [name for name, *_ in seen] == ["before", "after"] * 2
    assert seen[0][1] > 1e-2
    assert not seen[0][2].equal(seen[1][2])


def test_log_holds_means_over_its_window(tmp_path):
    values = iter(range(100))

    def counting(model, batch):
        return StepOutput(
            {"a": 0 * model(batch["x"]).sum() + next(values)}, {"b": torch.tensor(2.0)}
        )

    history = fit_points(tmp_path, counting, steps=5, log_every=2, gradient_accumulation=2).history
    assert [r["step"] for r in history] == [2, 4, 5]
    assert [r["loss/a"] for r in history] == [1.5, 5.5, 8.5]
    assert [r["loss"] for r in history] == [1.5, 5.5, 8.5]
    assert [r["epoch"] for r in history] == [0, 1, 2]
    assert {r["b"] for r in history} == {2.0}


def test_term_that_is_not_finite_is_named_with_its_step(tmp_path):
    steps = iter(range(100))

    def explode(model, batch):
        error = squared(model, batch).losses["error"]
        return StepOutput({"fine": error, "bad": error / (0.0 if next(steps) == 6 else 1.0)})

    with pytest.raises(TrainingError, match=r"^loss/bad is not finite at step 7; lower train"):
        fit_points(tmp_path, explode, steps=30, log_every=10, save_every=5)
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved == ["step-00000005"]


def test_metric_that_is_not_finite_does_not_stop_training(tmp_path):
    def with_metric(model, batch):
        return StepOutput(squared(model, batch).losses, {"psnr": torch.tensor(math.inf)})

    assert fit_points(tmp_path, with_metric).step == 6


def test_learning_rate_schedules():
    def factors(**options):
        config = TrainConfig.model_validate({"steps": 8, **options})
        return [learning_rate_factor(config, step) for step in range(12)]

    assert factors() == [1.0] * 12
    assert factors(lr_schedule="linear")[:9] == pytest.approx([1 - i / 8 for i in range(9)])
    cosine = factors(lr_schedule="cosine", warmup_steps=3)
    assert cosine[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in itertools.pairwise(cosine[3:9]))
    assert cosine[8:] == [0.0] * 4  # and it does not rise again


def test_cosine_schedule_against_its_values_at_the_quarters():
    config = TrainConfig(steps=8, lr_schedule="cosine", warmup_steps=4)
    quarters = [learning_rate_factor(config, step) for step in range(4, 9)]
    assert quarters == pytest.approx([1, (2 + 2**0.5) / 4, 1 / 2, (2 - 2**0.5) / 4, 0])


def test_weight_decay_spares_vectors_and_codes(vqvae):
    options = {key: value for key, value in vqvae.items() if key != "name"}
    model = load_tokenizer("vqvae", **(options | {"quantizer": "vq"}))
    optimizer = make_optimizer(model, TrainConfig.model_validate({"weight_decay": 0.1}))
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    codebook = model.quantizer.codebook
    assert any(p is codebook for p in spared["params"])
    assert not any(p is codebook for p in decayed["params"])


# -- a second phase --------------------------------------------------------------------------------


class Judged(nn.Module):
    """A generator of numbers that a critic tells from ones."""

    def __init__(self, critic):
        super().__init__()
        self.layer, self.critic = nn.Linear(4, 1), [critic]  # in a list: not a submodule

    def forward(self, x):
        return self.layer(x)


def fit_judged(output, *, resume=False, **options):
    torch.manual_seed(0)
    critic = nn.Linear(1, 1)
    model = Judged(critic)

    def generate(module, batch):
        made = module(batch["x"])
        return StepOutput({"fool": -critic(made).mean() + made.square().mean()}, shared=made)

    def judge(module, batch, made):
        real, fake = module(torch.ones_like(made)), module(made.detach())
        return StepOutput({"hinge": (1 - real).relu().mean() + (1 + fake).relu().mean()})

    phase = Phase("critic", critic, judge, first_step=4)
    start = critic.weight.detach().clone()
    result = fit_points(
        output, generate, model, phases=[phase], resume=resume, learning_rate=0.1, **options
    )
    return result, critic, start


def test_second_phase_waits_then_trains_its_own_module_only(tmp_path):
    _, critic, start = fit_judged(tmp_path / "a", steps=4)
    assert critic.weight.equal(start), "the model's objective must not move the critic"
    result, critic, start = fit_judged(tmp_path / "b", steps=8)
    assert not critic.weight.equal(start)
    assert ["critic/loss/hinge" in r for r in result.history] == [False] * 4 + [True] * 4
    assert all(p.requires_grad for p in (*critic.parameters(), *result.model.parameters()))


def test_second_phase_resumes_bitwise(tmp_path, losses):
    straight, *_ = fit_judged(tmp_path / "a", steps=10)
    fit_judged(tmp_path / "b", steps=6)
    assert (tmp_path / "b/checkpoints/step-00000006/critic.safetensors").is_file()
    resumed, *_ = fit_judged(tmp_path / "b", steps=10, resume=True)
    assert [r["critic/loss"] for r in resumed.history[4:]] == [
        r["critic/loss"] for r in straight.history[4:]
    ]
    assert losses(resumed.history) == losses(straight.history)


# -- a tokenizer -----------------------------------------------------------------------------------


def test_run_folder(tmp_path, train, vqvae, capsys):
    result = train(tmp_path, vqvae, steps=40, sample_every=15, tracker="tensorboard")
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "data_report.json",
        "log.jsonl",
        "model",
        "recipe.yaml",
        "samples",
        "tensorboard",
    ]
    grids = sorted((tmp_path / "samples").iterdir())
    assert [path.name[-6:] for path in grids] == ["15.png", "30.png", "40.png"]
    with Image.open(grids[0]) as grid:
        assert grid.width > 8 * 8
    assert list((tmp_path / "tensorboard").rglob("events*"))

    written = parse_yaml((tmp_path / "recipe.yaml").read_text(), "recipe.yaml")
    assert list(written) == ["tokenizer", "data", "train", "seed"]  # its folder is where it lies
    assert written["tokenizer"] == vqvae
    recipe = load_tokenizer_recipe(tmp_path / "recipe.yaml")
    assert (recipe.train.steps, recipe.tokenizer["quantizer"]["revive_every"]) == (40, 3)

    images = torch.rand(2, 1, 8, 8) * 2 - 1
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.encode(images).equal(result.model.encode(images))
    assert not result.model.training
    printed = capsys.readouterr().out
    assert printed.index("50, served as") < printed.index("step 1/40")
    assert "images/s" in printed


def test_images_of_another_shape_are_refused_before_the_first_step(tmp_path, vqvae):
    recipe = TokenizerRecipe(tokenizer=vqvae, data=DataConfig(name="digits"))
    with pytest.raises(InputError, match="do not fit this VQVAE"):
        train_tokenizer(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inside", ["", "model"], ids=["run", "model"])
def test_training_starts_from_trained_weights(tmp_path, train, vqvae, inside):
    first = train(tmp_path / "first", vqvae, steps=3)
    source = str(tmp_path / "first" / inside)
    still = {"steps": 1, "learning_rate": 1e-9}
    second = train(tmp_path / "second", vqvae, seed=1, init_from=source, **still)
    theirs = dict(first.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert parameter.allclose(theirs[name], atol=1e-8), name


def test_resuming_does_not_ask_for_the_first_weights_again(tmp_path, train, losses):
    train(tmp_path / "first", steps=3)
    source = str(tmp_path / "first")
    straight = train(tmp_path / "straight", steps=4, init_from=source)
    train(tmp_path / "run", steps=2, init_from=source)
    shutil.rmtree(source)
    with pytest.raises(ConfigError, match=r"^init_from: the run to resume has '.*first', not None"):
        train(tmp_path / "run", steps=4, resume=True)
    assert load_tokenizer_recipe(tmp_path / "run" / "recipe.yaml").init_from == source
    resumed = train(tmp_path / "run", steps=4, init_from=source, resume=True)
    assert losses(resumed.history) == losses(straight.history)


def test_weights_that_do_not_fit_are_refused_before_the_first_step(tmp_path, train, vqvae):
    train(tmp_path / "first", vqvae, steps=1)
    with pytest.raises(CheckpointError, match=r"first, a VQVAE, do not fit this VQVAE \(4 diff"):
        train(tmp_path / "run", vqvae | {"codebook_size": 8}, init_from=str(tmp_path / "first"))
    with pytest.raises(ConfigError, match="'vqvae' names an untrained tokenizer"):
        train(tmp_path / "run", vqvae, init_from="vqvae")
    for nowhere in ("nowhere", "runs/nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(CheckpointError, match=f"^init_from {nowhere}: not a folder with a"):
            train(tmp_path / "run", vqvae, init_from=nowhere)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_missing_tracker_is_one_line_before_anything_is_written(
    tmp_path, train, monkeypatch, tracker
):
    monkeypatch.setitem(sys.modules, tracker, None)  # as where it is not installed
    remedy = rf"^train\.tracker: {tracker} is not installed; pip install 'spectok\[{tracker}\]',"
    with pytest.raises(ConfigError, match=remedy) as caught:
        train(tmp_path / "run", tracker=tracker)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_precisions_follow_one_another_in_one_process(tmp_path, train, qgvae):
    for precision in ("bf16", "no"):
        result = train(tmp_path / precision, qgvae, steps=3, mixed_precision=precision)
        assert math.isfinite(result.history[-1]["loss"])
        assert result.model(torch.zeros(2, 1, 8, 8)).reconstruction.dtype == torch.float32
    if not torch.accelerator.is_available():
        with pytest.raises(ConfigError, match=r"train\.mixed_precision: fp16 needs a GPU"):
            train(tmp_path / "fp16", qgvae, mixed_precision="fp16")


SLOW = "no bf16 instructions, so bf16 is many times slower"


@pytest.mark.parametrize(
    ("supported", "precision", "said"),
    [(False, "bf16", 1), (True, "bf16", 0), (False, "no", 0)],
)
def test_slow_bf16_is_said_before_the_first_step(
    tmp_path, monkeypatch, capfd, supported, precision, said
):
    probe = "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(torch.ops.mkldnn, probe, lambda: supported, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_points(tmp_path / "stopped", stop, mixed_precision=precision)
    assert capfd.readouterr().err.count(SLOW) == said
    with silenced():
        fit_points(tmp_path / "run", steps=1, mixed_precision=precision)
    assert SLOW not in capfd.readouterr().err


def test_slow_bf16_is_the_cpus_and_only_where_torch_can_tell(monkeypatch, capsys):
    config = TrainConfig(mixed_precision="bf16")
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    remark_slow_bf16(config, torch.device("cpu"))
    known = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", known)
    remark_slow_bf16(config, torch.device("cuda"))
    assert capsys.readouterr().err == ""
    remark_slow_bf16(config, torch.device("cpu"))
    assert capsys.readouterr().err.startswith("note: train.mixed_precision: this processor has no")


def test_low_codebook_usage_is_said_once(tmp_path, capsys):
    def with_usage(model, batch):
        return StepOutput(squared(model, batch).losses, {"codebook_usage": torch.tensor(0.03)})

    fit_points(tmp_path, with_usage, steps=5)
    printed = capsys.readouterr().out
    assert printed.count("warning: only 3.0 % of the codebook is in use at step 2") == 1


def test_samples_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "samples").write_text("a file, where the folder should go")
    callbacks = Callbacks(sample=lambda model, step, folder: None)
    with pytest.raises(CheckpointError, match=r"^cannot write to the folder of the run: .*samples"):
        fit_points(tmp_path, callbacks=callbacks, sample_every=2)


def test_empty_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="empty"):
        fit(nn.Linear(1, 1), [], squared, TrainConfig(steps=1), Run(tmp_path))


# -- the weight average ----------------------------------------------------------------------------


def test_average_is_saved_and_buffers_go_with_it(tmp_path, train, vqvae):
    plain = train(tmp_path / "plain", vqvae)
    averaged = train(tmp_path / "averaged", vqvae, ema_decay=0.9)
    raw = load_file(tmp_path / "averaged/checkpoints/step-00000012/model.safetensors")
    assert all(raw[name].equal(t) for name, t in plain.model.state_dict().items())
    final = averaged.model.state_dict()
    assert final["quantizer.codebook"].equal(raw["quantizer.codebook"])
    weight = next(name for name, _ in averaged.model.named_parameters())
    assert not final[weight].equal(raw[weight])
    saved = load_file(tmp_path / "averaged/model/diffusion_pytorch_model.safetensors")
    assert all(saved[name].equal(t) for name, t in final.items())


def test_average_against_its_formula():
    model = nn.Linear(3, 1)
    ema, expected = WeightEMA(model, 0.5), model.weight.detach().clone()
    for n in range(1, 12):
        model.weight.data += 1
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    with ema.applied():
        assert model.weight.allclose(expected)
    assert model.weight.equal(own)


def test_edited_codes_are_taken_over_and_the_others_averaged(vqvae):
    options = {key: value for key, value in vqvae.items() if key != "name"}
    model = load_tokenizer("vqvae", **(options | {"quantizer": "vq"}))
    ema, codebook = WeightEMA(model, 0.5), model.quantizer.codebook
    codebook.data += 1  # as an optimiser would
    with ema.following_edits():
        codebook.data[0, 3] = 7.0
    shadow = ema.shadow["quantizer.codebook"]
    assert shadow[0, 3].eq(7).all()
    assert shadow[0, 2].allclose(codebook[0, 2] - 1)


def test_training_takes_codes_into_the_average_as_they_were_edited(tmp_path):
    model = nn.Linear(4, 1)
    model.codes = create_quantizer("vq", dim=2, num_tokens=1, codebook_size=3)
    start = model.codes.codebook.detach().clone()

    def edit(model, optimizers):
        model.codes.codebook.data[0, 1] += 1

    fit_points(tmp_path, model=model, callbacks=Callbacks(after_step=edit), ema_decay=0.9)
    moved = model.codes.codebook.detach() - start  # the averaged weights, after six steps
    assert moved[0].flatten().tolist() == pytest.approx([0, 0, 6, 6, 0, 0])
