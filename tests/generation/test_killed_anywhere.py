"""SIGKILL at any moment, of any trainer, in one process or two: nothing is lost, nothing differs.

A run is killed at random moments, again and again, until it is done; then its weights, its
optimisers and its log must be, bit for bit, those of a run that nobody disturbed. Whenever it is
killed, the last checkpoint that was complete must still be there.

The runs are forked from this process, so that a kill costs no imports. ``SPECTOK_KILLS`` sets how
many kills each kind of run gets.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time

import pytest
import torch

from spectok.data import DataConfig
from spectok.training import TokenizerRecipe, TrainConfig, checkpoint, train_tokenizer
from spectok.training.checkpoint import choose_checkpoint, hash_file
from spectok_generation.prior_recipe import PriorRecipe
from spectok_generation.text.clip import train_clip
from spectok_generation.text.clip_recipe import ClipRecipe
from spectok_generation.training import train_prior

KILLS = int(os.environ.get("SPECTOK_KILLS", "30"))
VQVAE = {
    "name": "vqvae",
    "image_size": 8,
    "in_channels": 1,
    "downsample_factor": 2,
    "codebook_size": 16,
    "codebook_dim": 4,
    "channels": 8,
    "num_blocks": 1,
    "residual_channels": 4,
    "quantizer": {"name": "ema", "revive_every": 3, "revive_below": 0.5},
}
DIGITS = {"name": "digits", "image_size": 8, "limit": 50}
TRAIN = {
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "log_every": 1,
    "save_every": 2,
    "sample_every": 7,
    "keep_last": 2,
}
TOKENIZER = json.dumps({"tokenizer": VQVAE, "data": DIGITS, "train": TRAIN | {"steps": 20}})
GPT = {"name": "gpt", "num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.1}
CLIP = {
    "image_layers": 1,
    "text_layers": 1,
    "embed_dim": 12,
    "image_width": 16,
    "text_width": 16,
    "head_width": 8,
    "patch_size": 8,
    "context_length": 8,
}


def tokenizer(folder, **options):
    sections = {"tokenizer": VQVAE, "data": DataConfig.model_validate(DIGITS)}
    sections["train"] = TrainConfig.model_validate(TRAIN | options.pop("train", {}))
    recipe = TokenizerRecipe.model_validate(sections | options)
    train_tokenizer(recipe, folder, resume="auto")


def accumulated(folder):
    """A global batch of three micro-batches, averaged weights, a schedule, half precision."""
    options = {"batch_size": 3, "gradient_accumulation": 2, "ema_decay": 0.9}
    options |= {"lr_schedule": "cosine", "mixed_precision": "bf16", "max_grad_norm": 0.5}
    tokenizer(folder, train=options)


def against_a_discriminator(folder):
    section = {"discriminator": {"name": "patchgan", "channels": 4, "num_layers": 1}}
    tokenizer(folder, adversarial=section | {"start_step": 3}, train={"gradient_accumulation": 2})


def two_processes(folder):
    tokenizer(folder, train={"batch_size": 4})


def prior(folder):
    """With all that it needs first: its tokenizer and its tokens are made inside the run."""
    own = str(folder.parent / "tokenizer.yaml")
    sections = {"prior": GPT, "tokenizer": own, "data": DIGITS, "train": TRAIN}
    recipe = PriorRecipe.model_validate(sections | {"copies": 2})
    train_prior(recipe, folder, resume="auto")


def clip(folder):
    data = {"name": "shapes", "image_size": 16, "limit": 24, "channels": 3}
    recipe = ClipRecipe.model_validate({"clip": CLIP, "data": data, "train": TRAIN})
    train_clip(recipe, folder, resume="auto")


KINDS = {
    "tokenizer": (lambda folder: tokenizer(folder), 1),
    "accumulated": (accumulated, 1),
    "adversarial": (against_a_discriminator, 1),
    "prior": (prior, 1),
    "clip": (clip, 1),
    "two-processes": (two_processes, 2),
    "two-processes-prior": (prior, 2),
}


def launch(fork, train, folder, count):
    """Start a run in one process, or in a group of several."""
    if count == 1:
        return [fork(quietly, train, folder)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = map(str, range(count))
    return [
        fork(quietly, train, folder, environment=group | {"RANK": r, "LOCAL_RANK": r})
        for r in ranks
    ]


def quietly(train, folder):
    """Train without a word, on a disk so slow that many a kill hits a save."""
    flush = checkpoint.flush

    def flush_slowly(path):
        time.sleep(0.004)
        flush(path)

    checkpoint.flush = flush_slowly
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    train(folder)


def newest(folder):
    """Return the step of the newest whole checkpoint of a run and of the runs inside it."""
    found = {}
    for checkpoints in folder.glob("**/checkpoints"):
        chosen, damaged = choose_checkpoint(checkpoints)
        assert not damaged
        found[checkpoints] = int(chosen.name[5:]) if chosen else 0
    return found


def bits(tree):
    """Return a state with the bytes of its tensors in their place."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [bits(value) for value in tree]
    return tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else tree


def content(folder):
    """Return every bit of the tensors that a run leaves behind for good, and its log."""
    kept = [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin")]
    files = {str(path.relative_to(folder)): hash_file(path) for path in kept}
    for path in folder.rglob("*.pt"):  # equal states may be pickled differently
        files[str(path.relative_to(folder))] = bits(torch.load(path, weights_only=True))
    logs = {}
    for path in folder.glob("**/log.jsonl"):
        lines = map(json.loads, path.read_text().splitlines())
        clock = ("seconds", "images_per_second")
        logs[str(path.relative_to(folder))] = [
            {key: value for key, value in line.items() if key not in clock} for line in lines
        ]
    return files, logs


def wait_for_the_moment(folder, processes, rng):
    """Wait for a random time after the start, after the first step, or into a save."""
    how = rng.choice(["start", "steps", "steps", "save"])
    start = time.time()
    if how == "start":
        time.sleep(rng.uniform(0.0, 1.0))
        return
    logs = (folder / "log.jsonl", folder / "tokenizer" / "log.jsonl")
    while all(not log.is_file() or log.stat().st_mtime < start for log in logs):
        if not all(process.is_alive() for process in processes):
            return
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.4))
    deadline = time.monotonic() + 1
    while how == "save" and not saving(folder) and time.monotonic() < deadline:
        pass


def saving(folder):
    """Return whether something is half-written, in a run or in the run inside it."""
    places = (folder, folder / "checkpoints", folder / "tokenizer" / "checkpoints")
    names = [name for place in places if place.is_dir() for name in os.listdir(place)]
    return any(name.endswith(".partial") for name in names)


def kill_until_it_is_done(fork, train, folder, count, rng, most):
    """Kill a run at random moments, but not too often; return how often, and how often in a save.

    What is left of a launch is ended by its launcher.
    """
    killed = writing = 0
    before = {}
    while True:
        processes = launch(fork, train, folder, count)
        if killed < most:
            wait_for_the_moment(folder, processes, rng)
            for process in rng.sample(processes, count):
                process.kill()
        for process in processes:
            process.join(120)
        codes = [process.exitcode for process in processes]
        assert set(codes) <= {0, -signal.SIGKILL}, codes
        after = newest(folder)
        assert all(after[checkpoints] >= step for checkpoints, step in before.items())
        before = after
        if codes == [0] * count:
            return killed, writing
        killed += 1
        writing += saving(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_anywhere_it_becomes_the_same_run(tmp_path, fork, kind, capsys):
    train, count = KINDS[kind]
    rng = random.Random(kind)
    (tmp_path / "tokenizer.yaml").write_text(TOKENIZER)
    for process in launch(fork, train, tmp_path / "straight", count):
        process.join(300)
        assert process.exitcode == 0
    expected = content(tmp_path / "straight")
    kills = writing = runs = 0
    while kills < KILLS:
        killed = tmp_path / f"killed-{runs}"
        now, now_writing = kill_until_it_is_done(fork, train, killed, count, rng, KILLS - kills)
        kills, writing, runs = kills + now, writing + now_writing, runs + 1
        assert content(killed) == expected
    with capsys.disabled():
        print(f"{kind}: {kills} kills in {runs} runs, {writing} in the middle of a save")
