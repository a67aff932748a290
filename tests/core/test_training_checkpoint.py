"""A checkpoint is there completely or not at all, and nothing in it is executed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil

import pytest
import torch
from torch import nn

from spectok.errors import CheckpointError, ConfigError, TrainingError
from spectok.training.checkpoint import (
    Parts,
    choose_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
)
from spectok.training.same_run import check_same_run, flatten


@pytest.fixture
def parts():
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 64)).square().sum().backward()
    optimizer.step()
    return Parts({"model": model}, {"optimizer": optimizer})


def save(folder, parts, step, keep_last=2):
    save_checkpoint(folder / f"step-{step:08d}", step, parts, {"recipe": {"a": 1}}, keep_last)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_state_comes_back_whole(tmp_path, parts):
    save(tmp_path, parts, 3)
    model, optimizer = parts.models["model"], parts.others["optimizer"]
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    optimizer.state.clear()
    path = list_checkpoints(tmp_path)[-1]
    load_checkpoint(path, parts)
    assert all(t.equal(weights[name]) for name, t in model.state_dict().items())
    assert optimizer.state_dict()["state"][0]["exp_avg"].equal(moments)
    assert read_manifest(path)["step"] == 3


def test_only_the_newest_are_kept(tmp_path, parts):
    for step in (1, 2, 3, 10):
        save(tmp_path, parts, step)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_a_kill_while_an_old_one_is_removed_leaves_no_half_of_it(tmp_path, parts, monkeypatch):
    """It would lie there for good, under the name of a checkpoint."""
    for step in (1, 2):
        save(tmp_path, parts, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it is gone
    save(tmp_path, parts, 3)
    assert names(tmp_path) == ["step-00000001.partial", "step-00000002", "step-00000003"]


@pytest.mark.parametrize("victim", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_checkpoint_does_not_count(tmp_path, parts, victim, damage):
    save(tmp_path, parts, 1)
    save(tmp_path, parts, 2)
    path = tmp_path / "step-00000002" / victim
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_files_are_as_readable_as_any(tmp_path, parts):
    before = os.umask(0o022)
    try:
        save(tmp_path, parts, 1)
    finally:
        os.umask(before)
    files = list((tmp_path / "step-00000001").iterdir())
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_damage_of_the_same_size_is_one_line(tmp_path, parts):
    save(tmp_path, parts, 1)
    path = tmp_path / "step-00000001" / "state.pt"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(CheckpointError, match=r"cannot resume from .*step-00000001") as caught:
        load_checkpoint(path.parent, parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("victim", ["model.safetensors", "state.pt", "manifest.json"])
def test_every_byte_of_a_checkpoint_is_checked(tmp_path, parts, victim):
    save(tmp_path, parts, 1)
    save(tmp_path, parts, 2)
    newest, path = tmp_path / "step-00000002", tmp_path / "step-00000002" / victim
    assert choose_checkpoint(tmp_path) == (newest, {})
    whole = bytearray(path.read_bytes())
    place = whole.index(b'"step": 2') + 8 if victim == "manifest.json" else len(whole) // 2
    whole[place] ^= 1  # step 3 in place of 2, or a weight
    path.write_bytes(whole)
    chosen, damaged = choose_checkpoint(tmp_path)
    assert chosen == tmp_path / "step-00000001"
    assert list(damaged) == [newest]
    assert f"{victim} is damaged" in damaged[newest]
    shutil.rmtree(chosen)
    with pytest.raises(CheckpointError, match=f"step-00000002: {victim} is damaged"):
        choose_checkpoint(tmp_path)


def test_checkpoints_of_earlier_versions_have_no_hashes(tmp_path, parts):
    save(tmp_path, parts, 1)
    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: v for k, v in manifest.items() if k[:5] not in ("sha25", "check")})
    )
    assert choose_checkpoint(tmp_path) == (path.parent, {})


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path, train, capsys, losses):
    """It is named and put aside: counted as one of those to keep, it would push the others out."""
    straight = train(tmp_path / "a", steps=14, save_every=3)
    run = tmp_path / "b"
    train(run, steps=9, save_every=3, keep_last=2)
    weights = run / "checkpoints" / "step-00000009" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:2000] + bytes(1000) + content[3000:])
    resumed = train(run, steps=14, save_every=3, keep_last=1, resume=True)
    assert losses(resumed.history) == losses(straight.history)
    assert names(run / "checkpoints") == ["step-00000009.damaged", "step-00000014"]
    said = capsys.readouterr().err
    assert "step-00000009 is passed over: model.safetensors is damaged (its hash differs)" in said


def test_checkpoint_of_another_model_is_refused(tmp_path, parts):
    save(tmp_path, parts, 1)
    other = Parts({"model": nn.Sequential(nn.Linear(64, 32))}, {})
    with pytest.raises(CheckpointError, match="cannot resume from"):
        load_checkpoint(tmp_path / "step-00000001", other)


class Exploit:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_not_run(tmp_path, parts):
    save(tmp_path, parts, 1)
    mark, state = tmp_path / "executed", tmp_path / "step-00000001" / "state.pt"
    torch.save({"optimizer": Exploit(mark)}, state)
    with pytest.raises(CheckpointError, match="cannot resume from"):
        load_checkpoint(state.parent, parts)
    state.write_bytes(pickle.dumps(Exploit(mark)))
    with pytest.raises(CheckpointError, match=r"cannot resume from .* not unpickled") as caught:
        load_checkpoint(state.parent, parts)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("limit", [200, 5_000, 20_000])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, parts, fork, limit):
    def fill():
        save(tmp_path, parts, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(CheckpointError, match=r"free some space.*step-00000001 is intact"):
            save(tmp_path, parts, 2)
        assert names(tmp_path) == ["step-00000001"]

    process = fork(fill)
    process.join(60)
    assert process.exitcode == 0
    load_checkpoint(list_checkpoints(tmp_path)[-1], parts)


def test_full_disk_in_a_real_run(tmp_path, train, fork, losses):
    """The run stops with one line; with space again it resumes as if nothing had happened."""
    straight = train(tmp_path / "a", steps=12)

    def run_out_of_space():
        train(tmp_path / "b", steps=5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # or the limit would hit pytest's own file
            pytest.raises(CheckpointError) as caught,
        ):
            train(tmp_path / "b", steps=12, resume=True)
        assert "step-00000005 is intact" in str(caught.value)
        assert "\n" not in str(caught.value)

    process = fork(run_out_of_space)
    process.join(60)
    assert process.exitcode == 0
    assert names(tmp_path / "b" / "checkpoints") == ["step-00000005"]
    resumed = train(tmp_path / "b", steps=12, resume=True)
    assert losses(resumed.history) == losses(straight.history)


def test_leftovers_of_a_killed_save_are_removed(tmp_path, train):
    leftover = tmp_path / "checkpoints" / "step-00000007.partial"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    train(tmp_path, steps=1)
    assert names(tmp_path / "checkpoints") == ["step-00000001"]


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_state_that_is_not_finite_is_not_saved(tmp_path, parts, where):
    save(tmp_path, parts, 1)
    if where == "weight":
        parts.models["model"][0].weight.data[3, 4] = float("nan")
    else:
        parts.others["optimizer"].state_dict()["state"][0]["exp_avg"][0] = float("inf")
    expected = {"weight": "0.weight", "moment": "optimizer.state.0.exp_avg"}[where]
    with pytest.raises(TrainingError, match=f"^{expected} is not finite"):
        save(tmp_path, parts, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_format_of_another_version_is_refused(tmp_path, parts):
    save(tmp_path, parts, 1)
    path = tmp_path / "step-00000001" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="has checkpoint format 99"):
        read_manifest(path.parent)


def test_recipes_are_compared_setting_by_setting():
    old = {"tokenizer": {"name": "x", "levels": [1, 2]}, "train": {"steps": 5}, "output": "a"}
    check_same_run(old, {**old, "train": {"steps": 9}, "output": "b"})
    check_same_run(old, {**old, "tokenizer": {"name": "x", "levels": (1, 2)}})
    check_same_run({"tokenizer": "a/model"}, {"tokenizer": "b/model"})  # moved
    with pytest.raises(ConfigError, match="tokenizer: the run to resume has 'a/model', not None"):
        check_same_run({"tokenizer": "a/model"}, {"tokenizer": None})
    check_same_run(old, {**old, "init_from": None})  # a setting that came later, left out
    with pytest.raises(ConfigError) as caught:
        check_same_run(old, {**old, "tokenizer": {"name": "x", "levels": [2], "size": 4}})
    first, second = str(caught.value).splitlines()
    assert first.startswith("tokenizer.levels: the run to resume has [1, 2], not [2]")
    assert second.startswith("tokenizer.size: the run to resume has None, not 4")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_unwritable_folder_is_one_line(tmp_path, train):
    shutil.rmtree(tmp_path)
    tmp_path.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot write to"):
        train(tmp_path, steps=1)
