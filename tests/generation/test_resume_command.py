"""``spectok resume``: any run, wherever its folder is, ends as it would have without a stop."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from spectok.cli import main
from spectok.recipes.yaml12 import dump_yaml, read_yaml
from spectok.training.log import read_log

STEPS = 8
KINDS = {
    "tokenizer": ["train", "smoke/vqvae"],
    "gpt": ["train", "prior", "smoke/prior_gpt"],
    "maskgit": ["train", "prior", "smoke/prior_maskgit"],
    "cat": ["train", "prior", "smoke/prior_cat"],
    "ldm": ["train", "prior", "smoke/prior_ldm"],
    "clip": ["train", "clip", "smoke/clip"],
    "classifier": ["train", "classifier", "--data", "digits", "data.limit=96"],
}
SETTINGS = ["train.log_every=1", "train.save_every=2", "train.sample_every=null"]
SETTINGS += ["train.batch_size=8", "train.num_workers=0"]


def words(kind, output, steps):
    return [*KINDS[kind], *SETTINGS, f"train.steps={steps}", "--output", str(output)]


def quiet(arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code or 0


def weights(run):
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


def interrupt(fork, kind, output):
    """Begin a run, and kill it once it has a checkpoint."""
    process = fork(quiet, words(kind, output, 4000))
    deadline = time.monotonic() + 90
    while not (output / "checkpoints" / "step-00000004").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (output / "model").exists()
    return max(int(path.name[5:]) for path in (output / "checkpoints").glob("step-????????"))


def slow(kind):
    return kind if kind == "tokenizer" else pytest.param(kind, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", [slow(kind) for kind in KINDS])
def test_a_killed_run_that_was_moved_ends_with_the_weights_of_one_that_was_not_stopped(
    kind, tmp_path, monkeypatch, fork
):
    monkeypatch.chdir(tmp_path)
    done = interrupt(fork, kind, tmp_path / "killed")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "killed", moved)
    copy = shutil.copytree(moved, tmp_path / "copy")
    total = done + 3
    assert quiet(["resume", moved, f"train.steps={total}", "train.reschedule=true"]) == 0
    assert not (tmp_path / "killed").exists()
    train = KINDS[kind][:2] if KINDS[kind][1] in ("prior", "clip", "classifier") else ["train"]
    again = [*train, copy, "--resume", f"train.steps={total}", "train.reschedule=true"]
    assert quiet(again) == 0
    whole = tmp_path / "whole"
    assert quiet(words(kind, whole, total)) == 0
    expected = weights(whole)
    for run in (moved, copy):
        found = weights(run)
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)
        assert [line["step"] for line in read_log(run / "log.jsonl")] == [*range(1, total + 1)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert quiet(words("tokenizer", folder, 2)) == 0
    return folder


def test_a_finished_run_says_so_and_how_to_go_on(finished, spectok):
    status, out, err = spectok("resume", finished)
    assert (status, err) == (0, "")
    assert f"{finished} is finished, at 2 of 2 steps" in out
    assert out.endswith(f"spectok resume {finished} train.steps=4\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("tokenizer.codebook_size=9", "tokenizer.codebook_size: the run to resume has 16, not 9"),
        ("data.limit=5", "data.limit: the run to resume has 96, not 5"),
        ("data.name=shapes", "data.name: the run to resume has 'digits', not 'shapes'"),
        ("train.learning_rate=1", "train.learning_rate: the run to resume has 0.001, not 1"),
        ("train.stepz=9", "train.stepz: unknown key (did you mean 'steps'?)"),
        ("more", "more is no setting; give what is to change as key=value"),
    ],
)
def test_what_would_make_it_another_run_is_refused_by_name(finished, spectok, change, told):
    before = sorted(finished.rglob("*")), read_yaml(finished / "recipe.yaml")
    status, _, err = spectok("resume", finished, change)
    assert status == 2
    assert err.startswith(f"error: {told}")
    assert err.count("\n") == 1
    assert before == (sorted(finished.rglob("*")), read_yaml(finished / "recipe.yaml"))


def test_what_is_no_run_is_refused_in_one_line(finished, spectok, tmp_path):
    (tmp_path / "folder").mkdir()
    for name, told in {
        tmp_path / "folder": "is no run: a run's folder has a recipe.yaml",
        tmp_path / "foldr": f"does not exist (did you mean '{tmp_path / 'folder'}'?)",
        finished / "log.jsonl": "is no run",
    }.items():
        status, _, err = spectok("resume", name)
        assert (status, err.count("\n")) == (2, 1)
        assert told in err


@pytest.mark.parametrize("kind", ["prior_gpt", "prior_ldm"])
def test_what_a_run_builds_on_may_move_but_not_change(finished, spectok, tmp_path, kind):
    tokenizer, run = shutil.copytree(finished, tmp_path / "tokenizer"), tmp_path / "run"
    whole = ["train", "prior", f"smoke/{kind}", *SETTINGS, "--tokenizer", str(tokenizer / "model")]
    whole += ["train.lr_schedule=constant"]
    assert quiet([*whole, "train.steps=2", "--output", run]) == 0
    moved = shutil.move(tokenizer, tmp_path / "moved")
    other = tmp_path / "other"
    assert quiet(["train", "smoke/vqvae", *SETTINGS, "train.steps=1", "--output", other]) == 0

    status, _, err = spectok("resume", run, "train.steps=3")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith(f"where it was moved: spectok resume {run} tokenizer=PLACE\n")
    status, _, err = spectok("resume", run, "train.steps=3", f"tokenizer={other}/model")
    assert status == 2
    assert "tokenizer" in err
    status, _, err = spectok("resume", run, "train.steps=3", f"tokenizer={moved}/model")
    assert (status, err) == (0, "")
    assert read_yaml(run / "recipe.yaml")["tokenizer"] == f"{moved}/model"


def test_data_may_move_but_not_change(spectok, tmp_path):
    from PIL import Image

    for folder, grey in {"a": 50, "b": 50, "c": 51}.items():
        (tmp_path / folder).mkdir()
        for name in ("x.png", "y.png"):
            Image.new("L", (16, 16), grey).save(tmp_path / folder / name)
    run = tmp_path / "run"
    train = ["train", "smoke/vqvae", "--data", tmp_path / "a", *SETTINGS, "data.limit=null"]
    train += ["data.image_size=16", "train.lr_schedule=constant", "train.batch_size=2"]
    assert quiet([*train, "train.steps=1", "--output", run]) == 0
    shutil.rmtree(tmp_path / "a")
    status, _, err = spectok("resume", run, "train.steps=2")
    assert (status, err.count("\n")) == (2, 1)
    assert f"spectok resume {run} data.path=PLACE" in err
    status, _, err = spectok("resume", run, "train.steps=2", f"data.path={tmp_path}/c")
    assert status == 2
    assert "the data differ from those of the run to resume" in err
    assert spectok("resume", run, "train.steps=2", f"data.path={tmp_path}/b")[0] == 0


@pytest.fixture(scope="module")
def finished_prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "run"
    assert quiet(words("gpt", folder, 2)) == 0
    return folder


DATA_SETTINGS = ["data.limit", "data.name", "data.max_shift", "seed"]


@pytest.mark.parametrize(
    ("kind", "setting"),
    [*itertools.product(["tokenizer", "gpt"], DATA_SETTINGS), ("gpt", "copies")],
)
def test_a_setting_changed_in_the_folder_of_a_run_is_named_and_nothing_is_made_of_it(
    finished, finished_prior, spectok, tmp_path, kind, setting
):
    run = shutil.copytree(finished if kind == "tokenizer" else finished_prior, tmp_path / "run")
    recipe, (section, _, name) = read_yaml(run / "recipe.yaml"), setting.partition(".")
    changed = recipe[section] if name else recipe
    changed[name or section] = {"name": "shapes", "limit": 5}.get(name, 3)
    (run / "recipe.yaml").write_text(dump_yaml(recipe))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, _, err = spectok("resume", run, "train.steps=4")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {setting}: the run to resume has ")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
