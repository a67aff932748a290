"""Priors trained from recipes: what is made first, what is refused, resuming, two processes."""

import os
import signal
import sys
import time

import pytest
import torch
from huggingface_hub import ModelCard

from spectok import load_tokenizer
from spectok.cards import CARD
from spectok.errors import CheckpointError, ConfigError
from spectok.training.log import read_log
from spectok_generation import TokenCache, load_prior, sample_tokens
from spectok_generation.drawing import choose_labels, decode_tokens
from spectok_generation.pairs import check_pair, load_pair
from spectok_generation.prior_recipe import PriorRecipe, load_data, load_prior_recipe
from spectok_generation.records import prior_fingerprint
from spectok_generation.training import train_prior

TRAIN = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "log_every": 1,
    "save_every": 4,
    "sample_every": None,
}
GPT = {"name": "gpt", "num_layers": 1, "num_heads": 2, "width": 16, "condition_dropout": 0.3}
TINY_TOKENIZER = """
tokenizer: {name: vqvae, image_size: 8, in_channels: 1, downsample_factor: 2, codebook_size: 8,
            codebook_dim: 4, channels: 8, num_blocks: 1, residual_channels: 4}
data: {name: digits, image_size: 8, limit: 40}
train: {steps: 3, batch_size: 8, sample_every: null}
"""


def recipe_for(tokenizer, prior=GPT, **options):
    train = TRAIN | options.pop("train", {})
    sections = {"data": {"name": "digits", "limit": 50}} | options
    return PriorRecipe.model_validate(
        {"prior": prior, "tokenizer": str(tokenizer), "train": train, **sections}
    )


def losses(output):
    return [(record["step"], record["loss"].hex()) for record in read_log(output / "log.jsonl")]


def test_a_prior_learns_a_trained_tokenizers_tokens(any_tokenizer, tmp_path):
    options = {"steps": 30, "sample_every": 30, "log_every": 5}
    recipe = recipe_for(any_tokenizer, GPT | {"dropout": 0.0}, train=options)
    result = train_prior(recipe, tmp_path / "run")
    tokenizer = load_tokenizer(any_tokenizer)
    bits = tokenizer.token_spec.bits_per_image / tokenizer.token_spec.num_tokens
    assert result.history[-1]["bits_per_token"] < 0.9 * bits
    assert (tmp_path / "run" / "samples" / "step-00000030.png").stat().st_size > 0

    prior, tokenizer = load_pair(tmp_path / "run")
    labels = choose_labels(prior, 12)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    tokens = sample_tokens(prior, 12, labels, seed=3)
    assert torch.equal(tokens, sample_tokens(result.model, 12, labels, seed=3))
    assert decode_tokens(tokenizer, tokens, batch_size=5).shape == (12, 1, 16, 16)


def test_the_card_of_a_prior_names_its_tokenizer_and_no_place(any_tokenizer, tmp_path):
    train_prior(recipe_for(any_tokenizer), tmp_path / "numerals")
    card = tmp_path / "numerals" / "model" / CARD
    text, prior = card.read_text(), load_prior(card.parent)
    data = ModelCard.load(card).data
    assert {"image-generation", "prior", "gpt"} <= set(data.tags)
    assert data["spectok"]["weights"] == prior_fingerprint(prior)
    assert f"(weights {prior.tokenizer_record['fingerprint'][:12]})" in text
    assert "given a class" in text
    assert str(any_tokenizer.parent) not in text
    assert (card.parent / "training_curve.png").is_file()


def test_a_missing_tracker_is_refused_before_a_tokenizer_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as where it is not installed
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_TOKENIZER)
    with pytest.raises(ConfigError, match=r"pip install 'spectok\[tensorboard\]'"):
        train_prior(recipe_for(file, train={"tracker": "tensorboard"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipes_tokenizer_is_trained_first_and_kept(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_TOKENIZER)
    recipe = load_prior_recipe(
        "gpt", [("prior", GPT), ("tokenizer", str(file)), ("train", TRAIN), ("copies", 2)]
    )
    assert recipe.data.limit == 40  # the tokenizer's own images
    run = tmp_path / "run"
    train_prior(recipe, run)
    assert len(TokenCache(run / "tokens")) == 80
    weights = (run / "tokenizer" / "model" / "diffusion_pytorch_model.safetensors").read_bytes()
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": 10})})
    assert train_prior(longer, run, resume=True).step == 10
    again = (run / "tokenizer" / "model" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert again == weights
    load_pair(run.rename(tmp_path / "moved"))  # the recorded place is gone, the run's own is not


def test_tokens_can_be_given_and_must_fit_the_tokenizer(tmp_path, tokenizer_folder):
    first = recipe_for(tokenizer_folder, class_conditional=False)
    train_prior(first, tmp_path / "first")
    tokens = str(tmp_path / "first" / "tokens")
    second = PriorRecipe.model_validate({"prior": GPT, "tokens": tokens, "train": TRAIN})
    result = train_prior(second, tmp_path / "second")
    assert (load_prior(tmp_path / "first").num_classes, result.model.num_classes) == (0, 10)

    other = load_tokenizer(tokenizer_folder)
    next(other.parameters()).data.view(-1)[0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="extract them again"):
        train_prior(recipe_for(tmp_path / "other", tokens=tokens), tmp_path / "third")
    with pytest.raises(CheckpointError, match="give the tokenizer it was trained with"):
        check_pair(result.model, other)
    with pytest.raises(CheckpointError, match="give the tokenizer it was trained with"):
        load_pair(tmp_path / "second", tmp_path / "other")


@pytest.mark.parametrize(
    ("tokenizer", "error", "told"),
    [
        ("runs/tk", CheckpointError, r"runs/tk does not exist \(did you mean 'runs/tok'\?\)"),
        ("./vqvae", CheckpointError, "./vqvae does not exist"),
        ("a/b/c", CheckpointError, "a/b/c does not exist"),
        ("vqvae", ConfigError, "'vqvae' names an untrained tokenizer"),
        ("owner/name", ConfigError, "data: missing, and no recipe.yaml beside the tokenizer"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_not_told_as_missing_data(
    tokenizer, error, told, tmp_path, monkeypatch
):
    (tmp_path / "runs" / "tok").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=told):
        load_prior_recipe("gpt", [("tokenizer", tokenizer)])
    with pytest.raises(error, match=told):
        load_data(tokenizer, None, [])


def test_bad_recipes(tmp_path, tokenizer_folder):
    with pytest.raises(ConfigError, match="tokenizer: missing"):
        load_prior_recipe("gpt")
    with pytest.raises(ConfigError, match="says what it was trained on; give --data"):
        load_prior_recipe("gpt", [("tokenizer", str(tokenizer_folder))])
    with pytest.raises(ConfigError, match=r"prior.dropuot: unknown key \(did you mean 'dropout'"):
        load_prior_recipe("gpt", ["tokenizer=x", "prior.dropuot=1", "data.name=digits"])
    untrained = recipe_for("qgvae")
    with pytest.raises(ConfigError, match="'qgvae' names an untrained tokenizer"):
        train_prior(untrained, tmp_path / "run")
    textless = load_prior_recipe("cat", [("tokenizer", "tok"), "data.name=digits"])
    with pytest.raises(ConfigError, match="cat reads texts; give a text encoder"):
        train_prior(textless, tmp_path / "textless")
    assert not (tmp_path / "textless").exists()
    (tmp_path / "done" / "model").mkdir(parents=True)
    (tmp_path / "done" / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a finished run"):
        train_prior(untrained, tmp_path / "done")


def test_extraction_follows_the_tokenizers_own_data(tmp_path, tokenizer_folder):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "recipe.yaml").write_text(TINY_TOKENIZER)
    for folder in (run, run / "model"):
        assert load_data(str(folder), None, ["limit=7"]).limit == 7
        assert load_data(str(folder), None, []).image_size == 8
    assert load_data(str(tokenizer_folder), "photos", []).name == "photos"


def test_killed_and_resumed_it_trains_what_it_would_have_trained(tmp_path, tokenizer_folder, fork):
    prior = GPT | {"dropout": 0.2}
    recipe = recipe_for(tokenizer_folder, prior, train={"steps": 4000, "save_every": 3})
    killed = tmp_path / "killed"
    process = fork(train_prior, recipe, killed)
    deadline = time.monotonic() + 60
    while not (killed / "checkpoints" / "step-00000006").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = max(int(path.name[5:]) for path in (killed / "checkpoints").glob("step-????????"))
    last = {"steps": done + 5, "save_every": 3}
    short = recipe_for(tokenizer_folder, prior, train=last)
    train_prior(short, killed, resume=True)
    train_prior(short, tmp_path / "whole")
    assert losses(killed) == losses(tmp_path / "whole")
    assert len(losses(killed)) == done + 5


def test_two_processes_train_what_one_trains(tmp_path, tokenizer_folder, fork_ranks):
    prior = GPT | {"dropout": 0.0}  # dropout differs between ranks
    train_prior(recipe_for(tokenizer_folder, prior), tmp_path / "one")
    half = recipe_for(tokenizer_folder, prior, train={"batch_size": 4})
    assert fork_ranks(train_prior, half, tmp_path / "two") == [0, 0]
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    expected = [record["loss"] for record in one]
    assert [record["loss"] for record in two] == pytest.approx(expected, rel=1e-5)
    assert fork_ranks(sample_rank, tmp_path / "one", tmp_path / "tokens.pt") == [0, 0]
    alone, _ = load_pair(tmp_path / "one")
    expected = sample_tokens(alone, 7, torch.arange(7), batch_size=2)
    assert torch.equal(torch.load(tmp_path / "tokens.pt"), expected)


def sample_rank(run, file):
    from pathlib import Path

    from spectok.training import TrainConfig
    from spectok.training.launch import accelerated

    with accelerated(TrainConfig(), Path()):
        prior, _ = load_pair(run)
        tokens = sample_tokens(prior, 7, torch.arange(7))
    if os.environ["RANK"] == "1":
        torch.save(tokens, file)
