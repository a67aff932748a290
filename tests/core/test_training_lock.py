"""Two trainings never share a folder, and a dead one blocks none."""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from pathlib import Path

import pytest

from spectok.errors import CheckpointError
from spectok.training.lock import HOLDER, LOCK, run_locked


def hold(output, seconds=60):
    with run_locked(output):
        time.sleep(seconds)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.is_file() or not path.stat().st_size:  # made, but not written yet
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_training_is_refused_and_names_the_first(tmp_path, train, fork):
    first = fork(hold, tmp_path)
    wait_for(tmp_path / HOLDER)
    named = rf"is in use by process {first.pid} on {platform.node()} \(since \d{{4}}-"
    with pytest.raises(CheckpointError, match=named):
        train(tmp_path, steps=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, HOLDER]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux's")
def test_where_no_file_can_be_made_nobody_is_blamed():
    message = r"cannot write to /proc/spectok: No such file"
    with (
        pytest.raises(CheckpointError, match=message),
        run_locked(Path("/proc/spectok"), beside=True),
    ):
        pass


def test_the_lock_of_a_dead_process_is_taken_over_with_a_note(tmp_path, train, fork, capsys):
    first = fork(hold, tmp_path)
    wait_for(tmp_path / HOLDER)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    train(tmp_path, steps=1)
    said = f"note: taking over {tmp_path} from process {first.pid} on {platform.node()} (since "
    assert said in capsys.readouterr().err
    assert not {LOCK, HOLDER} & {p.name for p in tmp_path.iterdir()}


def test_worker_processes_do_not_keep_the_lock_of_a_dead_training(tmp_path, train, fork):
    first = fork(train, tmp_path, steps=100_000, num_workers=2)
    wait_for(tmp_path / "log.jsonl")
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with run_locked(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()


def test_the_parts_of_a_run_may_ask_again(tmp_path):
    with run_locked(tmp_path), run_locked(tmp_path):
        pass
    with run_locked(tmp_path):
        pass


def refused_rank(train, output):
    with pytest.raises(CheckpointError, match="is in use by process"):
        train(output, steps=1)


def test_every_process_of_a_launch_learns_of_the_refusal(tmp_path, train, fork, fork_ranks):
    fork(hold, tmp_path)
    wait_for(tmp_path / HOLDER)
    assert fork_ranks(refused_rank, train, tmp_path) == [0, 0]
