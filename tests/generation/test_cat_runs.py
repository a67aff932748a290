"""Runs of cat in every form: trained, resumed, exported, and begun by an earlier version."""

import json

import pytest
import torch

from spectok.errors import ConfigError
from spectok.recipes.recipe import resolve_recipe
from spectok.testing.small import small_tokenizer
from spectok.training.checkpoint import MANIFEST, list_checkpoints
from spectok.training.log import read_log
from spectok_generation import TokenPipeline, load_text_encoder
from spectok_generation.drawing import draw_images
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.prior_recipe import PriorRecipe
from spectok_generation.sampling import SamplingOptions
from spectok_generation.text.encoder import TextEncoder
from spectok_generation.text.features import CaptionFeatures
from spectok_generation.training import train_prior

PROMPTS = ["a large red circle", "a ring", "a small blue cross"]
RELEASED = {
    "attention": "multi_query",
    "positions": "relative_2d",
    "tied_embeddings": True,
    "head_width": 4,
    "block": "released",
}
RUNS = {
    "pooled": {"text_conditioning": "pooled"},
    "prefix": {"text_conditioning": "prefix"},
    "released": RELEASED,
    "released, prefix": RELEASED | {"text_conditioning": "prefix"},
}
SMALL = {"name": "cat", "num_layers": 1, "num_heads": 2, "width": 16}
NEW = {"text_conditioning", "attention", "positions", "tied_embeddings", "block", "head_width"}


@pytest.fixture(scope="module")
def folder(save_small_clip, tmp_path_factory):
    """Return a folder with a tokenizer and a CLIP with random weights."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(1)
    small_tokenizer("vqvae", in_channels=3).save_pretrained(folder / "tokenizer")
    save_small_clip(folder / "clip")
    return folder


def recipe_for(folder, options, steps=6):
    return PriorRecipe.model_validate(
        {
            "prior": SMALL | options,
            "tokenizer": str(folder / "tokenizer"),
            "text": {"encoder": str(folder / "clip")},
            "data": {"name": "shapes", "limit": 16},
            "train": {
                "steps": steps,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "log_every": 1,
                "save_every": 3,
                "sample_every": steps,
            },
        }
    )


def resolved(recipe):
    """Return a recipe with all defaults filled in, as commands do."""
    return resolve_recipe(recipe.model_dump(mode="json"), PriorRecipe)


def losses(run):
    return [(record["step"], record["loss"].hex()) for record in read_log(run / "log.jsonl")]


@pytest.mark.parametrize(
    "kind",
    [k if "released" in k else pytest.param(k, marks=pytest.mark.slow) for k in RUNS],
)
def test_a_run_is_resumed_and_its_pipeline_draws_what_it_draws(kind, folder, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_prior(recipe_for(folder, RUNS[kind]), whole)
    train_prior(recipe_for(folder, RUNS[kind], steps=3), stopped)
    train_prior(recipe_for(folder, RUNS[kind]), stopped, resume=True)
    assert losses(stopped) == losses(whole)

    prior, tokenizer = load_pair(whole)
    text = load_encoder(prior, whole)(PROMPTS)
    wishes = SamplingOptions(guidance=2.0)
    images = draw_images(prior, tokenizer, 3, text, seed=5, options=wishes)
    TokenPipeline.from_run(whole).save_pretrained(tmp_path / "pipe")
    pipeline = TokenPipeline.from_pretrained(tmp_path / "pipe")
    pipeline.set_progress_bar_config(disable=True)
    again = pipeline(prompt=PROMPTS, num_images=3, seed=5, output_type="pt", guidance=2.0).images
    assert torch.equal(again, images)


def test_features_kept_for_one_form_serve_another(folder, tmp_path):
    train_prior(recipe_for(folder, {}), tmp_path / "cross")
    kept = CaptionFeatures(tmp_path / "cross" / "captions")
    train_prior(recipe_for(folder, RUNS["pooled"]), tmp_path / "pooled")
    other = CaptionFeatures(tmp_path / "pooled" / "captions")
    assert kept.header["hashes"] == other.header["hashes"]


def test_a_run_that_an_earlier_version_began_is_resumed(folder, tmp_path):
    whole, earlier = tmp_path / "whole", tmp_path / "earlier"
    first, longer = (resolved(recipe_for(folder, {}, steps)) for steps in (3, 6))
    train_prior(longer, whole)
    train_prior(first, earlier)
    (checkpoint,) = list_checkpoints(earlier / "checkpoints")
    content = json.loads((checkpoint / MANIFEST).read_text())
    for name in NEW:
        del content["recipe"]["prior"][name]
    (checkpoint / MANIFEST).write_text(json.dumps(content))
    train_prior(longer, earlier, resume=True)
    assert losses(earlier) == losses(whole)
    other = resolved(recipe_for(folder, {"text_conditioning": "pooled"}, 7))
    with pytest.raises(ConfigError, match=r"prior\.text_conditioning: the run to resume has"):
        train_prior(other, earlier, resume=True)


def test_an_encoder_that_pools_elsewhere_is_refused_first(folder, tmp_path, monkeypatch):
    record = load_text_encoder(str(folder / "clip")).record | {"pools_last_token": False}
    monkeypatch.setattr(TextEncoder, "record", record)
    with pytest.raises(ConfigError, match="does not pool at the last token"):
        train_prior(recipe_for(folder, RUNS["pooled"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
