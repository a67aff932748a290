"""Two nodes of two processes, on the loopback address of one host."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spectok.training.log import read_log

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RELATIVE = 1e-5  # gradients are summed in another order
SCRIPTS = {
    "tokenizer": ["train_tokenizer.py", "--config", "smoke/vqvae"],
    "prior": ["train_prior.py", "--config", "smoke/prior_gpt"],
}


def script(kind, tokenizer, output, *settings):
    name, *words = SCRIPTS[kind]
    given = [] if kind == "tokenizer" else [f"tokenizer={tokenizer}"]
    fixed = ["train.log_every=1", "train.save_every=6", "train.sample_every=null", "train.steps=6"]
    command = [str(ROOT / "generation" / name), *words, *given, *fixed, *settings]
    return [*command, "--output", str(output)]


def on_nodes(count, words, environment=None):
    """Launch a script on several nodes, as the page says; return what each wrote to stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for rank in range(count):
        launch = [str(BIN / "torchrun"), "--nnodes", str(count), "--nproc_per_node", "2"]
        launch += ["--node_rank", str(rank), "--master_addr", "127.0.0.1"]
        command = [*launch, "--master_port", str(port), *words]
        nodes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    told = [node.communicate(timeout=300)[1] for node in nodes]
    return [node.returncode for node in nodes], told


def curve(output):
    return [record["loss"] for record in read_log(output / "log.jsonl")]


def bits(output):
    return [value.hex() for value in curve(output)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_two_nodes_train_as_one_process(tokenizer_folder, tmp_path, kind):
    one, two = tmp_path / "one", tmp_path / "two"
    words = script(kind, tokenizer_folder, one, "train.batch_size=8")
    subprocess.run([sys.executable, *words], check=True)
    words = script(kind, tokenizer_folder, two, "train.batch_size=2")
    assert on_nodes(2, words)[0] == [0, 0]
    assert len(curve(one)) == 6
    assert curve(two) == pytest.approx(curve(one), rel=RELATIVE)


@pytest.mark.slow
def test_resuming_with_another_number_of_nodes(tokenizer_folder, tmp_path):
    """The same number is bitwise; another trains on up to rounding, or is refused by its batch."""
    straight, half = tmp_path / "straight", tmp_path / "half"

    def words(folder, *settings):
        return script("prior", tokenizer_folder, folder, "train.batch_size=2", *settings)

    assert on_nodes(2, words(straight))[0] == [0, 0]
    assert on_nodes(2, words(half, "train.steps=3"))[0] == [0, 0]
    status, told = on_nodes(1, words(half, "--resume"))
    assert status != [0]
    assert "took 8 samples per step, this one takes 4" in told[0]
    before = bits(half)

    other = script("prior", tokenizer_folder, half, "train.batch_size=4", "--resume")
    assert on_nodes(1, other)[0] == [0]
    assert bits(half)[:3] == before == bits(straight)[:3]
    assert curve(half) == pytest.approx(curve(straight), rel=RELATIVE)


@pytest.mark.slow
def test_resuming_on_the_same_nodes_is_bitwise(tokenizer_folder, tmp_path):
    straight, half = tmp_path / "straight", tmp_path / "half"

    def words(folder, *settings):
        return script("prior", tokenizer_folder, folder, "train.batch_size=2", *settings)

    assert on_nodes(2, words(straight))[0] == [0, 0]
    assert on_nodes(2, words(half, "train.steps=3"))[0] == [0, 0]
    assert on_nodes(2, words(half, "--resume"))[0] == [0, 0]
    assert bits(half) == bits(straight)
