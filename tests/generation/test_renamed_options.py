"""``class_dropout`` is now ``condition_dropout``: what was saved under that name still works."""

import json

import pytest

from spectok import Level, TokenSpec
from spectok.errors import CheckpointError, ConfigError
from spectok.training.checkpoint import MANIFEST, list_checkpoints
from spectok_generation import create_prior, load_prior
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.training import train_prior

SPEC = TokenSpec((Level((2, 2), 3),))
TINY = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16},
    "pixelcnn": {"num_layers": 1, "width": 8, "head_width": 8},
}
TRAIN = ["train.batch_size=4", "train.sample_every=null", "train.save_every=1"]


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def rename(path, *keys):
    """Give ``condition_dropout`` the name that it had, under the keys of a JSON file."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    section = content
    for key in keys:
        section = section[key]
    section["class_dropout"] = section.pop("condition_dropout")
    path.write_text(json.dumps(content))


def test_a_saved_prior_loads(name, tmp_path):
    create_prior(name, SPEC, num_classes=2, condition_dropout=0.3, **TINY[name]).save_pretrained(
        tmp_path
    )
    rename(tmp_path / "config.json")
    prior = load_prior(tmp_path)
    assert prior.condition_dropout == prior.config["condition_dropout"] == 0.3
    assert "class_dropout" not in prior.config


def test_a_recipe_is_read(name):
    own = [("tokenizer", "smoke/qgvae"), ("prior.class_dropout", 0.3)]
    assert load_prior_recipe(name, own).prior["condition_dropout"] == 0.3
    prior = create_prior(name, SPEC, num_classes=2, class_dropout=0.3, **TINY[name])
    assert prior.condition_dropout == 0.3


def test_both_names_at_once_are_refused(name, tmp_path):
    both = r"prior\.class_dropout: is now called 'condition_dropout', which is given too"
    path = tmp_path / "both.yaml"
    path.write_text(
        f"prior: {{name: {name}, class_dropout: 0.3, condition_dropout: 0.3}}\n"
        "tokenizer: smoke/qgvae\n"
    )
    with pytest.raises(ConfigError, match=both):
        load_prior_recipe(str(path))
    create_prior(name, SPEC, num_classes=2, **TINY[name]).save_pretrained(tmp_path / "prior")
    config = tmp_path / "prior" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"class_dropout": 0.9}))
    with pytest.raises(CheckpointError, match="with class_dropout and with condition_dropout"):
        load_prior(tmp_path / "prior")


@pytest.mark.parametrize("key", ["class_dropout", "condition_dropout"])
@pytest.mark.parametrize("written", ["class_dropout", "condition_dropout"])
def test_either_name_overrides_either(name, key, written, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"prior: {{name: {name}, {written}: 0.1}}\ntokenizer: smoke/qgvae\n")
    recipe = load_prior_recipe(str(path), [f"prior.{key}=0.3"])
    assert recipe.prior["condition_dropout"] == 0.3


def test_a_run_is_resumed(tokenizer_folder, tmp_path):
    own = [("tokenizer", str(tokenizer_folder)), ("data.limit", 8), *TRAIN]
    own += [(f"prior.{key}", value) for key, value in TINY["gpt"].items()]

    def run(steps, dropout, resume):
        settings = [("train.steps", steps), ("prior.class_dropout", dropout)]
        recipe = load_prior_recipe("gpt", [*own, *settings], "digits")
        return train_prior(recipe, tmp_path / "run", resume=resume)

    run(1, 0.3, resume=False)
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    rename(checkpoint / MANIFEST, "recipe", "prior")
    with pytest.raises(ConfigError, match=r"prior\.condition_dropout: the run to resume has 0\.3"):
        run(2, 0.2, resume=True)
    assert run(2, 0.3, resume=True).step == 2
