"""A run that is killed and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import pytest
from safetensors.torch import load_file

import spectok.training.resume
from spectok.errors import CheckpointError, ConfigError
from spectok.training.log import read_log


def train_and_die(train, output, options, step):
    """Train until the log has reached a step, then be killed wherever the next instant finds us."""

    def watch():
        while len(read_log(output / "log.jsonl")) < step:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    train(output, **options)


@pytest.mark.parametrize(
    ("options", "kill_step"),
    [
        pytest.param({}, 8, id="plain"),
        pytest.param({"num_workers": 2}, 11, id="two-workers"),
        pytest.param(
            {
                "gradient_accumulation": 3,
                "batch_size": 3,
                "ema_decay": 0.9,
                "max_grad_norm": 0.5,
                "lr_schedule": "cosine",
                "warmup_steps": 4,
                "weight_decay": 0.1,
                "mixed_precision": "bf16",
            },
            7,
            id="accumulation-ema-cosine-bf16",
        ),
    ],
)
def test_killed_run_resumes_bitwise(tmp_path, train, fork, losses, options, kill_step):
    options = {"steps": 20, **options}
    straight = train(tmp_path / "straight", **options)

    killed = tmp_path / "killed"
    process = fork(train_and_die, train, killed, options, kill_step)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "model").exists()
    resumed = train(killed, resume=True, **options)

    assert losses(resumed.history) == losses(straight.history)
    assert losses(read_log(killed / "log.jsonl")) == losses(straight.history)
    name = "model/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(killed / name), load_file(tmp_path / "straight" / name)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)


def test_qgvae_with_drawn_prefixes_resumes_bitwise(tmp_path, train, qgvae, losses):
    straight = train(tmp_path / "a", qgvae, steps=12)
    train(tmp_path / "b", qgvae, steps=5)
    resumed = train(tmp_path / "b", qgvae, steps=12, resume=True)
    assert losses(resumed.history) == losses(straight.history)


def test_seed_decides_the_run(tmp_path, train, losses):
    a, b, c = (train(tmp_path / n, steps=3, seed=s) for n, s in [("a", 1), ("b", 1), ("c", 2)])
    assert losses(a.history) == losses(b.history) != losses(c.history)


def test_resume_with_nothing_to_resume_says_so_unless_told_otherwise(tmp_path, train):
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"run holds no checkpoint to resume from;.*auto"):
        train(run, steps=2, resume=True)
    assert not run.exists()
    assert train(run, steps=2, resume="auto").step == 2
    assert train(run, steps=3, resume="auto").step == 3


def test_a_trained_model_without_checkpoints_is_not_overwritten(tmp_path, train):
    train(tmp_path, steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    for resume, words in [(True, "no checkpoint to resume"), ("auto", "holds a trained model but")]:
        with pytest.raises(CheckpointError, match=words):
            train(tmp_path, steps=2, resume=resume)


def test_finished_run_is_not_overwritten(tmp_path, train):
    train(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"already holds a run, at step-00000002; resume it"):
        train(tmp_path, steps=2)


def test_resuming_a_finished_run_changes_nothing(tmp_path, train, losses):
    before = train(tmp_path, steps=2)
    after = train(tmp_path, steps=2, resume=True)
    assert losses(after.history) == losses(before.history)
    assert after.step == 2
    assert after.seconds == pytest.approx(before.seconds, abs=1)


def test_resume_refuses_another_recipe(tmp_path, train, vqvae):
    train(tmp_path, steps=2)
    with pytest.raises(ConfigError, match=r"train\.learning_rate: the run to resume has 0\.003"):
        train(tmp_path, steps=4, resume=True, learning_rate=1e-3)
    other = vqvae | {"quantizer": {"name": "ema", "decay": 0.9}}
    with pytest.raises(ConfigError, match=r"tokenizer\.quantizer\.decay"):
        train(tmp_path, other, steps=4, resume=True)
    with pytest.raises(ConfigError, match="seed"):
        train(tmp_path, steps=4, resume=True, seed=3)


def test_a_run_from_before_options_goes_on_if_they_do_nothing(tmp_path, train, monkeypatch):
    train(tmp_path, steps=2)
    read = spectok.training.resume.read_manifest

    def earlier(folder):
        manifest = read(folder)
        recipe = manifest["recipe"]
        del recipe["train"]["optimizer"], recipe["data"]["horizontal_flip"]
        return manifest

    monkeypatch.setattr(spectok.training.resume, "read_manifest", earlier)
    with pytest.raises(ConfigError, match=r"train\.optimizer: the run to resume has 'adamw', not"):
        train(tmp_path, steps=4, resume=True, optimizer="adam")
    assert train(tmp_path, steps=4, resume=True).step == 4


def test_refused_resume_leaves_the_run_as_it_was(tmp_path, train, vqvae):
    train(tmp_path, steps=2)
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"took 8 samples per step"):
        train(tmp_path, steps=4, resume=True, batch_size=16)
    with pytest.raises(ConfigError, match=r"tokenizer\.quantizer"):
        train(tmp_path, vqvae | {"quantizer": {"name": "vq"}}, steps=4, resume=True)
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_resume_refuses_another_number_of_samples_per_step(tmp_path, train):
    train(tmp_path, steps=2)
    with pytest.raises(ConfigError, match=r"took 8 samples per step, this one takes 16"):
        train(tmp_path, steps=4, resume=True, batch_size=16)
    assert train(tmp_path, steps=4, resume=True, batch_size=4, gradient_accumulation=2).step == 4


def test_a_learning_rate_jumps_only_with_consent(tmp_path, train, capsys):
    """Cosine: at its last step the rate is all but zero; of more steps it is the middle."""
    cosine = {"lr_schedule": "cosine", "log_every": 1}
    train(tmp_path, steps=10, **cosine)
    words = r"train\.steps: with 20 steps instead of 10 .* from 7\.34e-05 to 0\.0015 at step 11"
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, steps=20, resume=True, **cosine)
    assert train(tmp_path, steps=10, resume=True, **cosine).step == 10
    resumed = train(tmp_path, steps=20, resume=True, reschedule=True, **cosine)
    assert (
        "note: the learning rate goes from 7.34e-05 to 0.0015 at step 11" in capsys.readouterr().err
    )
    assert resumed.history[10]["learning_rate"] == pytest.approx(0.0015)
    assert "reschedule" not in (tmp_path / "recipe.yaml").read_text()  # consent is for one time
    with pytest.raises(ConfigError, match="with 30 steps instead of 20"):
        train(tmp_path, steps=30, resume=True, **cosine)


def test_a_linear_run_that_was_stopped_half_way_does_not_change_its_rate(tmp_path, train):
    train(tmp_path, steps=4, lr_schedule="linear", warmup_steps=6)
    longer = {"lr_schedule": "linear", "warmup_steps": 6, "resume": True}
    assert train(tmp_path, steps=9, **longer).step == 9  # the warm-up is the same in both
    with pytest.raises(ConfigError, match=r"from 0\.00\d+ to 0\.00\d+ at step 10"):
        train(tmp_path, steps=12, **longer)


def test_fewer_steps_than_were_taken_are_refused(tmp_path, train):
    train(tmp_path, steps=5)
    with pytest.raises(ConfigError, match=r"train\.steps: 3 is less than the 5 steps"):
        train(tmp_path, steps=3, resume=True)


def test_log_and_save_frequency_may_change(tmp_path, train):
    train(tmp_path, steps=4, save_every=2)
    frequencies = {"save_every": 3, "log_every": 4, "keep_last": 1, "tracker": "tensorboard"}
    result = train(tmp_path, steps=9, resume=True, **frequencies)
    assert [r["step"] for r in result.history] == [1, 2, 3, 4, 6, 8, 9]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]


def test_incomplete_checkpoint_is_passed_over(tmp_path, train, losses):
    straight = train(tmp_path / "a", steps=12)
    train(tmp_path / "b", steps=12)
    newest = tmp_path / "b" / "checkpoints" / "step-00000012"
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:-10])
    resumed = train(tmp_path / "b", steps=12, resume=True)
    assert losses(resumed.history) == losses(straight.history)
    assert json.loads((newest / "manifest.json").read_text())["step"] == 12
