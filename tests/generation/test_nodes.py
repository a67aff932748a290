"""Two nodes of two processes, on the loopback address of one host."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spectok import load_tokenizer
from spectok.errors import ConfigError
from spectok.training import load_tokenizer_recipe, train_tokenizer
from spectok.training.log import read_log
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.training import train_prior

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RELATIVE = 1e-5  # gradients are summed in another order
FIXED = ["train.log_every=1", "train.save_every=6", "train.sample_every=null", "train.steps=6"]
SCRIPTS = {
    "tokenizer": ["train_tokenizer.py", "--config", "smoke/vqvae"],
    "prior": ["train_prior.py", "--config", "smoke/prior_gpt"],
}


def script(kind, tokenizer, output, *settings):
    name, *words = SCRIPTS[kind]
    given = [] if kind == "tokenizer" else [f"tokenizer={tokenizer}"]
    command = [str(ROOT / "generation" / name), *words, *given, *FIXED, *settings]
    return [*command, "--output", str(output)]


def on_nodes(count, words):
    """Launch a script on several nodes, as the page says; return their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for rank in range(count):
        launch = [str(BIN / "torchrun"), "--nnodes", str(count), "--nproc_per_node", "2"]
        launch += ["--node_rank", str(rank), "--master_addr", "127.0.0.1"]
        command = [*launch, "--master_port", str(port), *words]
        nodes.append(subprocess.Popen(command))
    return [node.wait(timeout=300) for node in nodes]


def curve(output):
    return [record["loss"] for record in read_log(output / "log.jsonl")]


def bits(output):
    return [value.hex() for value in curve(output)]


@pytest.fixture(scope="module")
def on_two_nodes(tmp_path_factory):
    """Return a folder with a tokenizer, a prior trained on two nodes, and the first half of it."""
    folder = tmp_path_factory.mktemp("nodes")
    options = {"image_size": 16, "in_channels": 1, "num_tokens": 8, "max_channels": 16}
    load_tokenizer("qgvae", codebook_size=12, **options).save_pretrained(folder / "tokenizer")
    for name, steps in [("straight", 6), ("half", 3)]:
        settings = ["train.batch_size=2", f"train.steps={steps}"]
        words = script("prior", folder / "tokenizer", folder / name, *settings)
        assert on_nodes(2, words) == [0, 0]
    return folder


def train_here(kind, folder, output, resume=False, batch_size=8):
    """Train in this process what a script would train."""
    settings = [f"train.batch_size={batch_size}", *FIXED]
    if kind == "tokenizer":
        return train_tokenizer(load_tokenizer_recipe("smoke/vqvae", settings), output)
    given = [f"tokenizer={folder / 'tokenizer'}", *settings]
    return train_prior(load_prior_recipe("smoke/prior_gpt", given), output, resume=resume)


@pytest.mark.slow
def test_two_nodes_train_a_prior_as_one_process(on_two_nodes, tmp_path):
    train_here("prior", on_two_nodes, tmp_path / "one")
    assert len(curve(tmp_path / "one")) == 6
    assert curve(on_two_nodes / "straight") == pytest.approx(curve(tmp_path / "one"), rel=RELATIVE)


@pytest.mark.slow
def test_two_nodes_train_a_tokenizer_as_one_process(tmp_path):
    train_here("tokenizer", None, tmp_path / "one")
    words = script("tokenizer", None, tmp_path / "two", "train.batch_size=2")
    assert on_nodes(2, words) == [0, 0]
    assert len(curve(tmp_path / "two")) == 6
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=RELATIVE)


@pytest.mark.slow
def test_resuming_on_the_same_nodes_is_bitwise(on_two_nodes, tmp_path):
    half = shutil.copytree(on_two_nodes / "half", tmp_path / "half")
    tokenizer = on_two_nodes / "tokenizer"
    words = script("prior", tokenizer, half, "train.batch_size=2", "--resume")
    assert on_nodes(2, words) == [0, 0]
    assert bits(half) == bits(on_two_nodes / "straight")


@pytest.mark.slow
def test_another_number_of_nodes_goes_on_or_is_refused_by_its_batch(on_two_nodes, tmp_path):
    half = shutil.copytree(on_two_nodes / "half", tmp_path / "half")
    before = bits(half)
    with pytest.raises(ConfigError, match="took 8 samples per step, this one takes 2"):
        train_here("prior", on_two_nodes, half, resume=True, batch_size=2)
    assert bits(half) == before

    tokenizer = on_two_nodes / "tokenizer"
    words = script("prior", tokenizer, half, "train.batch_size=4", "--resume")
    assert on_nodes(1, words) == [0]
    assert bits(half)[:3] == before == bits(on_two_nodes / "straight")[:3]
    assert curve(half) == pytest.approx(curve(on_two_nodes / "straight"), rel=RELATIVE)
