"""Every kind of training says once that bf16 is slow on this CPU."""

from __future__ import annotations

import pytest
import torch

from spectok.training.recipe import load_tokenizer_recipe
from spectok.training.tokenizer import train_tokenizer
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.text.clip import train_clip
from spectok_generation.text.clip_recipe import load_clip_recipe
from spectok_generation.training import train_prior

SETTINGS = ["train.steps=1", "train.mixed_precision=bf16", "data.limit=16"]
DRAWS_NOTHING = [*SETTINGS, "train.sample_every=null"]


@pytest.fixture(params=["tokenizer", "clip", "gpt", "pixelcnn", "maskgit", "ldm", "cat"])
def train(request, tokenizer_folder, save_small_clip, tmp_path):
    """Return a function that trains one kind of model for a step, in bf16."""
    output = tmp_path / "run"
    if request.param == "tokenizer":
        recipe = load_tokenizer_recipe("smoke/vqvae", DRAWS_NOTHING)
        return lambda: train_tokenizer(recipe, output)
    if request.param == "clip":
        clip = load_clip_recipe("smoke/clip", SETTINGS)
        return lambda: train_clip(clip, output)
    settings = [*DRAWS_NOTHING, ("tokenizer", str(tokenizer_folder))]
    if request.param == "cat":
        save_small_clip(tmp_path / "clip")
        settings += [("text.encoder", str(tmp_path / "clip")), "data.channels=1"]
    prior = load_prior_recipe(f"smoke/prior_{request.param}", settings)
    return lambda: train_prior(prior, output)


def test_slow_bf16_is_said_once(train, monkeypatch, capfd):
    probe = "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(torch.ops.mkldnn, probe, lambda: False, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)
    train()
    assert capfd.readouterr().err.count("this processor has no bf16 instructions") == 1
