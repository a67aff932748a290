"""A prior and a pipeline that a plugin brings: images are drawn from them by name."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spectok import load_tokenizer, plugins
from spectok.cards import CARD
from spectok.errors import CheckpointError, ConfigError
from spectok.evaluation.verifying import claims_of_folder
from spectok.plugins import hookspecs
from spectok.testing.small import small_tokenizer
from spectok_generation import TokenPipeline, draw_images, load_prior
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.prior_recipe import load_prior_recipe, tokenizer_data, tokenizer_recipe
from spectok_generation.records import prior_fingerprint
from spectok_generation.training import train_prior

CODE = """
from pathlib import Path
from spectok import hookimpl

@hookimpl
def spectok_models():
    from spectok import TrainedModel
    return TrainedModel.below(Path(__file__).with_name("mine_models"))
"""
PRIOR = "{name: gpt, num_layers: 1, num_heads: 2, width: 16}"
RECIPE = "tokenizer: {name: vqvae}\ndata: {name: digits, image_size: 16, channels: 1, limit: 40}\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder in which the prior of the box is trained."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def box(tmp_path_factory, runs):
    """Install a plugin with a tokenizer, a prior trained on it by its name, and a pipeline."""
    site = tmp_path_factory.mktemp("site-packages")
    root = site / "mine_models"
    torch.manual_seed(3)
    tokenizer = small_tokenizer("vqvae", in_channels=1, image_size=16)
    tokenizer.save_pretrained(root / "tokenizers" / "vqvae" / "digits")
    (root / "tokenizers" / "vqvae" / "digits" / "recipe.yaml").write_text(RECIPE)
    (site / "mine.py").write_text(CODE)
    info = site / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0")
    (info / "entry_points.txt").write_text(f"[{hookspecs.GROUP}]\nmine = mine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        plugins.installed.cache_clear()
        settings = [
            f"prior={PRIOR}",
            "train.steps=3",
            "train.batch_size=8",
            "tokenizer=vqvae/digits",
        ]
        settings += ["train.sample_every=null", "class_conditional=false"]
        train_prior(load_prior_recipe("gpt", settings), runs / "gpt")
        shutil.copytree(runs / "gpt" / "model", root / "priors" / "gpt" / "digits-vqvae")
        shutil.copy(runs / "gpt" / "recipe.yaml", root / "priors" / "gpt" / "digits-vqvae")
        pipeline = TokenPipeline.from_run("gpt/digits-vqvae")
        pipeline.save_pretrained(root / "pipelines" / "whole" / "digits")
        yield root
    plugins.installed.cache_clear()
    sys.modules.pop("mine", None)


@pytest.fixture(autouse=True)
def elsewhere(box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_prior_trained_on_a_name_is_drawn_from_by_name(box):
    prior, tokenizer = load_pair("gpt/digits-vqvae")
    assert prior.tokenizer_record["path"] == "vqvae/digits"
    weights = load_tokenizer("vqvae/digits").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tokenizer.state_dict().items())
    images = draw_images(prior, tokenizer, 3, seed=5)
    whole, inside = load_pair("whole/digits")
    assert torch.equal(draw_images(whole, inside, 3, seed=5), images)
    pipeline = TokenPipeline.from_pretrained("whole/digits")
    assert torch.equal(pipeline.tokenizer.encode(images), tokenizer.encode(images))


def test_commands_take_the_names(box, spectok, tmp_path):
    for name in ("gpt/digits-vqvae", "whole/digits"):
        words = ["sample", "--prior", name, "--num-images", 4, "--out", tmp_path / "drawn.png"]
        status, out, err = spectok(*words)
        assert (status, err) == (0, ""), err
        assert f"--prior {name}" in out
    drawn = tmp_path / "drawn"
    _, out, _ = spectok("sample", "--prior", "gpt/digits-vqvae", "--num-images", 4, "--out", drawn)
    assert "next: spectok eval gpt/digits-vqvae --num-images 4" in out
    assert "--data" not in out  # the recipe beside it says on what it was trained
    status, out, err = spectok("eval", "gpt/digits-vqvae", "--num-images", 4, "--limit", 8)
    assert status in (0, None), err
    status, _, err = spectok("export", "gpt/digits-vqvae", "--out", tmp_path / "exported")
    assert status in (0, None), err
    kinds = {row["name"]: row["kind"] for row in json.loads(spectok("list", "models", "--json")[1])}
    assert kinds["gpt/digits-vqvae"] == "prior"
    assert kinds["whole/digits"] == "pipeline"


def test_a_recipe_takes_the_trained_model_before_the_recipe_of_its_name(box):
    assert tokenizer_recipe("vqvae/digits") is None
    assert tokenizer_recipe("tokenizers/vqvae/digits") is not None
    assert tokenizer_data("vqvae/digits")["limit"] == 40
    recipe = load_prior_recipe("gpt", ["tokenizer=vqvae/digits"])
    assert (recipe.tokenizer, recipe.data.limit) == ("vqvae/digits", 40)


@pytest.mark.parametrize("take", [load_pair, TokenPipeline.from_pretrained])
def test_a_tokenizer_is_no_prior(box, take):
    with pytest.raises(ConfigError, match="'vqvae/digits' names a trained tokenizer, not a p"):
        take("vqvae/digits")


def test_a_name_that_is_close_is_suggested(box):
    with pytest.raises(CheckpointError, match="did you mean 'gpt/digits-vqvae'"):
        load_pair("gpt/digit-vqvae")
    with pytest.raises(CheckpointError, match="did you mean 'whole/digits'"):
        TokenPipeline.from_pretrained("whole/digit")


def test_a_prior_without_text_reads_none(box):
    prior, _ = load_pair("gpt/digits-vqvae")
    with pytest.raises(Exception, match="gpt/digits-vqvae holds a prior that reads no text"):
        load_encoder(prior, "gpt/digits-vqvae")


@pytest.fixture
def store(monkeypatch):
    """Run ``benchmarks/box.py``."""
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))

    def store(*words):
        monkeypatch.setattr(sys, "argv", ["box.py", *map(str, words)])
        runpy.run_path(str(benchmarks / "box.py"), run_name="__main__")

    return store


def test_a_prior_of_a_tokenizer_in_the_box_is_put_into_it(box, runs, store, tmp_path):
    target = shutil.copytree(box, tmp_path / "box")
    store(runs / "gpt", "gpt/stored", "--box", target)
    folder = target / "priors" / "gpt" / "stored"
    (weights,) = folder.glob("*.safetensors")
    stored = load_file(weights)
    trained = load_file(runs / "gpt" / "model" / weights.name)
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    for name, tensor in trained.items():
        assert torch.equal(stored[name], tensor.half() if tensor.is_floating_point() else tensor)
    card = (folder / CARD).read_text()
    assert "Its weights are stored as float16." in card
    assert "gpt/stored" in card
    assert str(tmp_path) not in card + (folder / "recipe.yaml").read_text()
    claims = claims_of_folder(folder)
    assert claims.contradictions == []
    assert {claim.weights for claim in claims.claims} == {prior_fingerprint(load_prior(folder))}
    assert len(claims.claims) == len({claim.protocol["num_images"] for claim in claims.claims})


def test_a_prior_of_another_tokenizer_is_not_put_into_the_box(box, runs, store, tmp_path):
    (tmp_path / "box").mkdir()
    with pytest.raises(SystemExit, match="error: the tokenizer of this prior is vqvae/digits, no"):
        store(runs / "gpt", "gpt/stored", "--box", tmp_path / "box")
    assert list((tmp_path / "box").iterdir()) == []


@pytest.mark.slow
def test_drawing_tokens_imports_nothing_of_latent_diffusion():
    """A second or more each, which a first sample would wait for."""
    heavy = ["diffusers.models.unets.unet_2d", "diffusers.loaders", "scipy.stats"]
    code = (
        "import sys\n"
        "from spectok_generation.pairs import load_pair\n"
        "from spectok_generation.drawing import draw_images\n"
        "prior, tokenizer = load_pair('gpt/mnist-hrvqvae')\n"
        "print(draw_images(prior, tokenizer, 1).shape[0])\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2:] == ["1", "[]"], done.stderr
