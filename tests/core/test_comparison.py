"""Tokenizers on equal terms: trained as their recipes say, and only once."""

from __future__ import annotations

import sys

import pytest

from spectok.errors import ConfigError
from spectok.evaluation import Evaluation
from spectok.evaluation.comparison import Competitor, check_run, compare
from spectok.recipes.recipe import resolve_recipe
from spectok.recipes.yaml12 import dump_yaml
from spectok.training import TokenizerRecipe, load_tokenizer_recipe
from spectok.training.log import read_log

TRAIN = {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": None}


def recipe_of(tokenizer, **sections):
    data = {"name": "digits", "image_size": 8, "limit": 40}
    raw = {"tokenizer": tokenizer, "data": data, "train": TRAIN, **sections}
    return TokenizerRecipe.model_validate(raw)


def run_comparison(recipe, folder):
    held_out = recipe.data.model_copy(update={"split": "test", "limit": 8})
    stages = []
    compare(
        {"one": Competitor("one", recipe)}, held_out, folder, Evaluation(), on_stage=stages.append
    )
    return stages


def test_a_competitor_is_trained_once_with_every_section_of_its_recipe(tmp_path, vqvae):
    recipe = recipe_of(vqvae, losses={"l1": 0.5}, seed=3)
    assert run_comparison(recipe, tmp_path) == ["train one", "evaluate one"]
    assert "loss/l1" in read_log(tmp_path / "one" / "log.jsonl")[-1]
    written = load_tokenizer_recipe(tmp_path / "one" / "recipe.yaml")
    assert (written.losses, written.seed) == (recipe.losses, 3)
    assert run_comparison(recipe, tmp_path) == ["evaluate one"]


def test_a_folder_with_a_run_of_another_recipe_is_refused(tmp_path, vqvae):
    run_comparison(recipe_of(vqvae), tmp_path)
    check_run(recipe_of(vqvae), tmp_path / "one")
    with pytest.raises(ConfigError, match=r"holds a run with init_from None, not 'runs/first'"):
        run_comparison(recipe_of(vqvae, init_from="runs/first"), tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run with losses\.\w+ None, not"):
        run_comparison(recipe_of(vqvae, losses={"l1": 0.5}), tmp_path)


def test_a_run_from_before_an_option_is_the_same_run_if_the_option_does_nothing(tmp_path):
    options = {"name": "vqvae2", "image_size": 16, "in_channels": 1, "channels": 8}
    raw = {"tokenizer": options, "data": {"name": "digits", "limit": 8}}
    written = resolve_recipe(raw, TokenizerRecipe).model_dump(mode="json", exclude_none=True)
    del written["tokenizer"]["num_grids"], written["train"]["compile"]
    (tmp_path / "recipe.yaml").write_text(dump_yaml(written))
    check_run(resolve_recipe(raw, TokenizerRecipe), tmp_path)
    more = raw | {"tokenizer": options | {"num_grids": 3}}
    with pytest.raises(ConfigError, match=r"holds a run with tokenizer\.num_grids 2, not 3"):
        check_run(resolve_recipe(more, TokenizerRecipe), tmp_path)
    more = raw | {"train": {"compile": True}}
    with pytest.raises(ConfigError, match=r"holds a run with train\.compile False, not True"):
        check_run(resolve_recipe(more, TokenizerRecipe), tmp_path)


def test_a_missing_tracker_is_refused_before_anything_is_trained(tmp_path, vqvae, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    tracked = recipe_of(vqvae, train=TRAIN | {"tracker": "wandb"})
    competitors = {"first": Competitor("a", recipe_of(vqvae)), "last": Competitor("b", tracked)}
    with pytest.raises(ConfigError, match=r"pip install 'spectok\[wandb\]'"):
        compare(competitors, tracked.data, tmp_path, Evaluation())
    assert not list(tmp_path.iterdir())
