"""Priors and CLIP train alike with ``train.compile``, and name their weights alike."""

from __future__ import annotations

import pytest

from spectok.training.log import read_log
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.text.clip import train_clip
from spectok_generation.text.clip_recipe import load_clip_recipe
from spectok_generation.training import train_prior

SETTINGS = ["train.steps=4", "train.log_every=1", "data.limit=32"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_code")]


def losses(folder):
    return [record["loss"] for record in read_log(folder / "log.jsonl")]


@pytest.mark.parametrize("name", ["gpt", "pixelcnn", "maskgit", "ldm", "cat"])
def test_priors_train_alike_when_compiled(name, tokenizer_folder, save_small_clip, tmp_path):
    settings = [*SETTINGS, "train.sample_every=null", ("tokenizer", str(tokenizer_folder))]
    if name == "cat":
        save_small_clip(tmp_path / "clip")
        settings += [("text.encoder", str(tmp_path / "clip")), "data.channels=1"]
    states = []
    for how in ("false", "true"):
        recipe = load_prior_recipe(f"smoke/prior_{name}", [*settings, f"train.compile={how}"])
        states.append(train_prior(recipe, tmp_path / how).model.state_dict())
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-4)
    assert states[0].keys() == states[1].keys()


def test_clip_trains_alike_when_compiled(tmp_path):
    for how in ("false", "true"):
        recipe = load_clip_recipe("smoke/clip", [*SETTINGS, f"train.compile={how}"])
        train_clip(recipe, tmp_path / how)
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-4)
