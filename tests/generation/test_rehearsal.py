"""What is impossible about a prior is said before its tokenizer is trained, not hours later."""

from __future__ import annotations

import pytest

from spectok.errors import SpectokError
from spectok.plugins import registry
from spectok_generation import training
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.rehearsal import rehearse

SMALL = ["data.limit=20"]
IMPOSSIBLE = {
    "heads": ("smoke/prior_gpt", ["prior.num_heads=5"], "num_heads"),
    "steps": (
        "smoke/prior_maskgit",
        ["prior.num_steps=1"],
        "num_steps 1 is less than the 2 levels",
    ),
    "kernel": ("smoke/prior_pixelcnn", ["prior.kernel=4"], "even"),
    "channels": ("smoke/prior_ldm", ["prior.channels=[8, 12]"], "divisible by 8"),
    "attention": ("smoke/prior_ldm", ["prior.attention_levels=[5]"], "is not one of the 2 levels"),
    "precision": ("smoke/prior_gpt", ["train.mixed_precision=fp16"], "fp16 needs a GPU"),
    "copies": ("smoke/prior_ldm", ["copies=2"], "^copies: 2 applies to tokens"),
    "encoder": ("smoke/prior_cat", ["text.encoder=nowhere"], "neither a folder nor a model"),
    "weights": (
        "smoke/prior_cat",
        ["text.encoder=ViT-B-32", "text.pretrained=nowhere.safetensors"],
        "neither a file nor a tag",
    ),
    "captions": ("smoke/prior_cat", ["data.name=digits"], "no captions to learn from"),
    "no text": ("smoke/prior_gpt", ["text.encoder=smoke/clip"], "gpt reads no text"),
    "path": ("smoke/prior_gpt", ["data.name=folder", "data.path=nowhere"], "nowhere"),
    "size": ("smoke/prior_gpt", ["data.image_size=17"], "do not fit the tokenizer"),
    "colours": ("smoke/prior_pixelcnn", ["data.channels=3"], "do not fit the tokenizer"),
    "size of latents": ("smoke/prior_ldm", ["data.image_size=20"], "do not fit the tokenizer"),
    "tokens": ("smoke/prior_gpt", ["tokens=nowhere"], "holds no token cache"),
}


@pytest.fixture
def nothing_is_trained(monkeypatch):
    def stop(*_, **__):
        pytest.fail("a step was taken before everything was checked")

    for name in ("train_tokenizer", "extract_tokens", "fit"):
        monkeypatch.setattr(training, name, stop)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_it_is_refused_before_the_first_step(tmp_path, nothing_is_trained, case):
    name, settings, words = IMPOSSIBLE[case]
    recipe = load_prior_recipe(name, [*SMALL, *settings])
    with pytest.raises(SpectokError, match=words) as caught:
        training.train_prior(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clip: {patch_size: 5}", r"clip\.patch_size: 5 does not fit"),
        ("clip: {text_width: 33}", r"clip\.text_width: 33 is no multiple"),
        ("clip: {}\ntrain: {mixed_precision: fp16}", "fp16 needs a GPU"),
    ],
)
def test_so_is_what_is_impossible_about_its_clip(tmp_path, nothing_is_trained, text, words):
    (tmp_path / "clip.yaml").write_text(f"{text}\ndata: {{name: shapes, limit: 8}}\n")
    settings = [*SMALL, ("text.encoder", str(tmp_path / "clip.yaml"))]
    with pytest.raises(SpectokError, match=words):
        training.train_prior(load_prior_recipe("smoke/prior_cat", settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", registry.list_registered("prior"))
def test_a_recipe_that_is_possible_passes(name):
    rehearse(load_prior_recipe(f"smoke/prior_{name}", SMALL))
