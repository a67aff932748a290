"""Two processes train what one process with the same global batch trains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from spectok.errors import DataError, SpectokError, TrainingError
from spectok.evaluation.doctor import examine
from spectok.interruption import Interrupted
from spectok.processes import barrier, from_main, on_main
from spectok.training import Callbacks
from spectok.training.checks import codebook_state, hash_bits
from spectok.training.launch import check_group, check_launch
from spectok.training.log import read_log

ROOT = Path(__file__).parents[2]
RELATIVE = 1e-5  # gradients are summed in another order


def hashes(model):
    return {name: int(hash_bits(t)) for name, t in codebook_state(model).items()}


def train_rank(train, output, tokenizer, options):
    """Train in one of two processes; leave this rank's codebooks behind."""
    result = train(output, tokenizer, **options)
    name = f"codebooks-{os.environ['RANK']}.json"
    (output / name).write_text(json.dumps(hashes(result.model)))


@pytest.mark.parametrize("kind", ["vqvae", "qgvae"])
def test_two_processes_equal_one(tmp_path, train, fork_ranks, request, kind):
    tokenizer = request.getfixturevalue(kind)
    options = {"steps": 10, "learning_rate": 1e-3, "ema_decay": 0.9}
    one = train(tmp_path / "one", tokenizer, batch_size=8, **options)
    two = tmp_path / "two"
    assert fork_ranks(train_rank, train, two, tokenizer, {"batch_size": 4, **options}) == [0, 0]

    expected = [record["loss"] for record in one.history]
    assert [record["loss"] for record in read_log(two / "log.jsonl")] == pytest.approx(
        expected, rel=RELATIVE
    )
    ranks = [json.loads((two / f"codebooks-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    trained = hashes(one.model)
    assert ranks[0].keys() == trained.keys()


def test_two_processes_resume_bitwise(tmp_path, train, fork_ranks, vqvae, losses):
    options = {"batch_size": 4, "gradient_accumulation": 2, "save_every": 3}
    for folder, steps, resume in [("a", 6, False), ("b", 3, False), ("b", 6, True)]:
        arguments = options | {"steps": steps, "resume": resume}
        assert fork_ranks(train_rank, train, tmp_path / folder, vqvae, arguments) == [0, 0]
    a, b = (read_log(tmp_path / folder / "log.jsonl") for folder in "ab")
    assert losses(a) == losses(b)


def drift(output):
    """Edit one rank's codebook behind the other's back, and expect to be told."""
    from spectok.data import DataConfig, build_dataset
    from spectok.loading import load_tokenizer
    from spectok.training import Run, TrainConfig, fit
    from spectok.training.objective import Objective

    model = load_tokenizer(
        "vqvae", image_size=8, in_channels=1, channels=8, codebook_dim=4, codebook_size=8
    )

    def edit(trained, _):
        if os.environ["RANK"] == "1":
            trained.quantizer.codebook.data[0, 3] += 1

    data = build_dataset(DataConfig(name="digits", image_size=8, limit=50))
    config = TrainConfig(steps=2, batch_size=4, log_every=1)
    with pytest.raises(TrainingError, match=r"quantizer\.codebook differs between processes"):
        fit(
            model, data, Objective(model), config, Run(output), callbacks=Callbacks(after_step=edit)
        )


def test_codebooks_that_drift_apart_stop_training_and_the_doctor_reads_why(tmp_path, fork_ranks):
    assert fork_ranks(drift, tmp_path) == [0, 0]
    (finding,) = examine(tmp_path).findings
    assert (finding.check, finding.severity) == ("ranks", "error")
    assert finding.place == "quantizer.codebook"
    assert finding.message == "differed between 2 processes at step 1"


def train_on_own_data(output):
    """Let the codes of two ranks follow different vectors, and nobody send buffers around."""
    from spectok.data import DataConfig, build_dataset
    from spectok.loading import load_tokenizer
    from spectok.training import Run, TrainConfig, fit
    from spectok.training.objective import Objective

    options = {"image_size": 8, "in_channels": 1, "channels": 8, "codebook_dim": 4}
    model = load_tokenizer("vqvae", codebook_size=8, **options)
    objective, sent = Objective(model), set()
    before = model.quantizer.codebook.clone()

    def compute_losses(module, batch):
        sent.add(module.broadcast_buffers)
        return objective(module, batch)

    data = build_dataset(DataConfig(name="digits", image_size=8, limit=50))
    config = TrainConfig(steps=4, batch_size=4, gradient_accumulation=2, log_every=1)
    callbacks = Callbacks(after_step=lambda trained, _: trained.after_step())
    fit(model, data, compute_losses, config, Run(output), callbacks=callbacks)
    assert sent == {False}
    assert "codebook" in dict(model.quantizer.named_buffers())
    assert not torch.equal(before, model.quantizer.codebook)
    (output / f"codebooks-{os.environ['RANK']}.json").write_text(json.dumps(hashes(model)))


def test_codebooks_stay_equal_although_buffers_are_not_broadcast(tmp_path, fork_ranks):
    assert fork_ranks(train_on_own_data, tmp_path) == [0, 0]
    first, second = (json.loads((tmp_path / f"codebooks-{r}.json").read_text()) for r in "01")
    assert first == second


def fail_to_save(train, output):
    """A checkpoint that rank 0 cannot write must stop rank 1 too, not leave it waiting."""
    with pytest.raises(SpectokError, match="cannot write checkpoint"):
        train(output, steps=2, keep_last=1)


def test_failure_to_save_stops_all_processes(tmp_path, train, fork_ranks):
    in_the_way = tmp_path / "checkpoints" / "step-00000002"
    in_the_way.parent.mkdir()
    in_the_way.write_text("a file, where the checkpoint's folder should go")
    assert fork_ranks(fail_to_save, train, tmp_path) == [0, 0]


def test_hash_sees_every_bit_and_its_place():
    codes = torch.randn(4, 8)
    flipped, swapped = codes.clone(), codes.flip(0)
    flipped[2, 3] = torch.nextafter(flipped[2, 3], torch.tensor(9.0))
    assert len({int(hash_bits(t)) for t in (codes, flipped, swapped)}) == 3
    assert int(hash_bits(codes)) == int(hash_bits(codes.clone()))


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, train, monkeypatch):
    accelerator = Accelerator(cpu=True)
    check_group(accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes were launched but this one trains alone"):
        check_group(accelerator)


def test_half_described_group_is_one_line(tmp_path, train, fork):
    def start():
        with pytest.raises(TrainingError, match=r"training cannot start here: .*MASTER_ADDR"):
            train(tmp_path)

    process = fork(start, environment={"WORLD_SIZE": "2"})
    process.join(60)
    assert process.exitcode == 0


def test_launch_that_silently_starts_one_process_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check_launch()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(TrainingError, match="torchrun --standalone --nproc_per_node N"):
        check_launch()


SCRIPT = str(ROOT / "generation" / "train_tokenizer.py")
BIN = Path(sys.executable).parent
TWO = ["--num_processes", "2", "--num_machines", "1"]
PLAIN = ["--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCHERS = {
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"],
    "accelerate": [str(BIN / "accelerate"), "launch", "--multi_gpu", *TWO, *PLAIN],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_script_under_real_launchers(tmp_path, monkeypatch, launcher):
    def train_script(folder, batch_size, launch):
        sizes = [f"train.batch_size={batch_size}", "train.log_every=1"]
        options = ["--config", "smoke/qgvae", "--output", str(tmp_path / folder), *sizes]
        subprocess.run([*launch, SCRIPT, *options], check=True)
        return [record["loss"] for record in read_log(tmp_path / folder / "log.jsonl")]

    one = train_script("one", 8, [sys.executable])
    if launcher == "accelerate":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    two = train_script("two", 4, LAUNCHERS[launcher])
    assert len(one) == 12
    assert two == pytest.approx(one, rel=RELATIVE)


@pytest.mark.slow
def test_accelerate_launch_cpu_names_the_remedy(tmp_path):
    launch = [str(BIN / "accelerate"), "launch", "--cpu", *TWO, *PLAIN]
    options = ["--config", "smoke/vqvae", "--output", str(tmp_path / "run")]
    result = subprocess.run([*launch, SCRIPT, *options], capture_output=True, text=True)
    assert result.returncode != 0
    assert "torchrun --standalone --nproc_per_node N" in result.stderr


# -- one process works, is late, or is gone --------------------------------------------------------


def in_group(function, minutes=5.0):
    """Call a function inside the process group that this process was launched in."""
    from spectok.training import TrainConfig
    from spectok.training.launch import joined

    with joined(TrainConfig(timeout_minutes=minutes)):
        function()


def work_for_longer_than_the_timeout(output):
    """The timeout is for those that do not answer: rank 0 works for longer, and barriers wait."""
    rank = os.environ["RANK"]

    def body():
        found = from_main(lambda: time.sleep(8) or {"by": rank})
        assert found == {"by": "0"}
        if rank == "1":
            time.sleep(8)
        barrier()
        (output / rank).write_text("done")

    in_group(body, minutes=6 / 60)


@pytest.mark.slow
def test_long_work_of_one_process_does_not_time_out_the_others(tmp_path, fork_ranks):
    assert fork_ranks(work_for_longer_than_the_timeout, tmp_path) == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def fail_on_main(error):
    def body():
        def action():
            raise error("out of luck")

        with pytest.raises(error, match="out of luck"):
            on_main(action)

    in_group(body)


def test_an_error_of_the_main_process_is_the_same_on_all(fork_ranks):
    assert fork_ranks(fail_on_main, DataError) == [0, 0]


def die_while_training(train, output, victim, how):
    """One process is killed, stopped or fails at step 3; the other names it in one line."""
    if os.environ["RANK"] != victim:
        expected = {"fail": f"process {victim} of 2 stopped: no such image"}.get(
            how, f"process {victim} of 2 has ended or does not answer"
        )
        with pytest.raises(TrainingError, match=expected) as caught:
            train(output, steps=100_000, batch_size=4, timeout_minutes=15 / 60)
        assert "\n" not in str(caught.value)
        return

    def watch():
        while len(read_log(output / "log.jsonl")) < 3:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    if how == "fail":
        from spectok.training.optimizer import set_learning_rate

        def fail(optimizer, config, step):
            if step == 3:
                raise DataError("no such image")
            return set_learning_rate(optimizer, config, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("spectok.training.loop.set_learning_rate", fail)
            with pytest.raises(DataError):
                train(output, steps=100_000, batch_size=4)
        return
    threading.Thread(target=watch, daemon=True).start()
    train(output, steps=100_000, batch_size=4)


@pytest.mark.parametrize(
    ("how", "victim"),
    [
        ("kill", "0"),
        ("fail", "1"),
        pytest.param("kill", "1", marks=pytest.mark.slow),
        pytest.param("fail", "0", marks=pytest.mark.slow),
        pytest.param("stop", "1", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_gone_is_named_by_the_others(tmp_path, train, fork, how, victim):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = {
        rank: fork(
            die_while_training, train, tmp_path, victim, how,
            environment=group | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    }  # fmt: skip
    survivor = ranks["1" if victim == "0" else "0"]
    survivor.join(120)
    assert survivor.exitcode == 0


def test_processes_that_are_stopped_stop_at_the_same_step(tmp_path, train, fork):
    """Only one of them gets the signal; both save the step they agree on, and leave."""
    options = {"steps": 14, "batch_size": 4, "save_every": 100}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def stopped(rank):
        if rank == "1":
            signal_at_step_four()
        with pytest.raises(Interrupted) as caught:
            train(tmp_path / "b", **options)
        assert caught.value.signal == signal.SIGTERM
        (tmp_path / rank).write_text(caught.value.checkpoint.name)

    def signal_at_step_four():
        from spectok.training import loop

        first = loop.set_learning_rate

        def counted(optimizer, config, step):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return first(optimizer, config, step)

        loop.set_learning_rate = counted

    ranks = [
        fork(stopped, rank, environment=group | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "step-00000006"
    straight = train(tmp_path / "a", **options | {"batch_size": 8})
    resumed = train(tmp_path / "b", resume=True, **options | {"batch_size": 8})
    assert [r["loss"] for r in resumed.history] == pytest.approx(
        [r["loss"] for r in straight.history], rel=RELATIVE
    )
