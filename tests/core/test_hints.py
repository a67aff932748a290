"""What a command answers to a slip: our name for it, or how it is said here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from spectok.recipes.recipe import path_of_setting
from spectok.recipes.usual_names import USUAL, suggest
from spectok.training.recipe import TokenizerRecipe
from spectok.training.train_config import TrainConfig


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vqvae", "train.lr=1"], "train.lr: unknown key (did you mean 'learning_rate'?)"),
        (["vqvae", "bs=4"], "bs: unknown key (did you mean 'train.batch_size'?)"),
        (["vqvae", "train.epochs=3"], "did you mean 'steps'? it counts batches"),
        (["vqvae", "train.fp16=true"], "did you mean 'mixed_precision'?"),
        (["vqvae", "train.devices=2"], "processes are launched: torchrun"),
        (["vqvae", "--steps", "10"], "there is no --steps; settings are key=value: train.steps=10"),
        (["vqvae", "--lr=3e-4"], "settings are key=value: train.learning_rate=3e-4"),
        (["prior", "gpt", "--max-steps", "9"], "settings are key=value: train.steps=9"),
        (["vqvae", "My Pictures/"], "images to train on are given as --data 'My Pictures/'"),
    ],
)
def test_a_slip_is_answered_with_what_is_said_here(refused, words, told):
    assert told in refused("train", *words)


def test_every_usual_name_leads_to_a_setting_that_exists():
    for ours in USUAL:
        if ours in ("codebook_size", "codebook_dim"):  # options of some tokenizers
            continue
        assert path_of_setting(ours, TokenizerRecipe) is not None, ours
    for name in ("learning_rate", "weight_decay", "steps"):
        assert suggest(name.replace("_", "")[:-1], TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("spectok train vqvae/", "vqvae/digits", "qgvae/digits"),
        ("spectok train pri", "prior", "qgvae"),
        ("spectok info hrv", "hrvqvae/cifar10", "vqvae"),
        ("spectok eval hrv", "hrvqvae/cifar10", "qgvae"),
        ("spectok train prior gpt/", "gpt/digits", "vqvae/digits"),
        ("spectok train vqvae --data dig", "digits", "shapes"),
        ("spectok resume runs/", "runs/mine/", "digits"),
    ],
)
def test_a_shell_completes_names(line, offered, not_offered, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "spectok"],
        env=os.environ | words | {"_SPECTOK_COMPLETE": "complete_bash"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert offered in done.stdout.split(), done.stderr
    assert not_offered not in done.stdout.split()


RUNS = {
    "prior": "prior: {name: gpt}\ntokenizer: vqvae/mnist\ntrain: {steps: 3}\n",
    "tokenizer": "tokenizer: {name: vqvae}\ntrain: {steps: 3}\n",
}


@pytest.mark.parametrize(
    ("kind", "command"),
    [("prior", []), ("tokenizer", ["prior"]), ("prior", ["clip"]), ("tokenizer", ["classifier"])],
)
def test_a_run_under_the_command_of_another_kind_is_named_and_goes_on_with_resume(
    refused, kind, command, tmp_path, monkeypatch
):
    (tmp_path / "my run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "my run" / "recipe.yaml").write_text(RUNS[kind])
    monkeypatch.chdir(tmp_path)
    for words in (["my run", "--resume"], ["my run/recipe.yaml"]):
        told = refused("train", *command, *words)
        assert told == (
            f"{words[0]} is of the run of a {kind}; go on with it: spectok resume 'my run'"
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", "recipe"], "(did you mean 'recipes'?)"),
        (["train", "vqvae", "tokenizer.nme=vq"], "tokenizer.nme: unknown key (did you mean 'name'"),
        (
            ["train", "vqvae", "tokenizer.quantizer.nme=vq"],
            "tokenizer.quantizer.nme: unknown key (did you mean 'name'",
        ),
        (["resume", ""], "the name of a run is empty"),
        (["info", "clip/shapes"], "spectok train clip clip/shapes trains it"),
    ],
)
def test_other_slips(refused, words, told):
    line = refused(*words)
    assert told in line
    assert "Value error" not in line


@pytest.mark.parametrize("command", [[], ["prior"], ["clip"], ["classifier"]])
def test_a_folder_of_images_in_place_of_a_recipe_is_given_as_data(
    refused, command, tmp_path, monkeypatch
):
    (tmp_path / "my pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    told = refused("train", *command, "my pictures/")
    assert told.endswith("images to train on are given as --data 'my pictures/'")
