"""Trained models by name: what a plugin registers, which name means what, what is listed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from spectok import TrainedModel, list_models, load_tokenizer, places, plugins
from spectok.errors import CheckpointError, ConfigError, PluginError, UnknownNameError
from spectok.loading import check_trained, model_folder
from spectok.plugins import hookspecs, registry
from spectok.testing.small import small_tokenizer
from spectok.trained import names

IMAGES = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
CODE = """
from pathlib import Path
from spectok import hookimpl

@hookimpl
def spectok_models():
    from spectok import TrainedModel
    root = Path(__file__).with_name("PACKAGE_models")
    return TrainedModel.below(root)
"""


@pytest.fixture
def install(tmp_path_factory, monkeypatch):
    """Install a plugin whose package holds one trained tokenizer; returns its folder."""
    site = tmp_path_factory.mktemp("site-packages")

    def write(package="mine", name="mine/digits", code=CODE):
        torch.manual_seed(3)
        folder = site / f"{package}_models" / "tokenizers" / name
        small_tokenizer("vqvae", in_channels=1, image_size=16).save_pretrained(folder)
        (site / f"{package}.py").write_text(code.replace("PACKAGE", package))
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0")
        (info / "entry_points.txt").write_text(f"[{hookspecs.GROUP}]\n{package} = {package}\n")
        plugins.installed.cache_clear()
        return folder

    monkeypatch.syspath_prepend(site)
    names._say_model_wins.cache_clear()
    places._say.cache_clear()
    yield write
    plugins.installed.cache_clear()
    for module in [m for m in sys.modules.values() if str(site) in str(getattr(m, "__file__", ""))]:
        del sys.modules[module.__name__]


def test_a_name_loads_the_model_of_the_package(install, tmp_path, monkeypatch):
    folder = install()
    monkeypatch.chdir(tmp_path)
    assert "mine/digits" in list_models()
    assert registry.provider("model", "mine/digits") == "mine 1.0"
    tokenizer = load_tokenizer("mine/digits")  # the tests are offline: a hub would be an error
    assert not tokenizer.training
    assert torch.equal(tokenizer.encode(IMAGES), load_tokenizer(folder).encode(IMAGES))
    assert load_tokenizer("mine/digits", torch_dtype="bfloat16").dtype == torch.bfloat16
    assert check_trained("mine/digits") == "mine/digits"
    assert Path(model_folder("mine/digits")) == folder


def test_a_name_means_what_is_installed_and_a_path_what_lies_here(
    install, tmp_path, monkeypatch, capsys
):
    folder = install()
    monkeypatch.chdir(tmp_path)
    small_tokenizer("qgvae").save_pretrained("mine/digits")
    assert type(load_tokenizer("mine/digits")).__name__ == "VQVAE"
    assert Path(model_folder("mine/digits")) == folder
    noted = capsys.readouterr().err.splitlines()
    assert len(noted) == 1  # once, however often it is asked for
    assert "mine/digits is taken for the trained model that is installed" in noted[0]
    assert noted[0].endswith("write ./mine/digits")
    for path in ("./mine/digits", "mine/digits/"):
        assert type(load_tokenizer(path)).__name__ == "QGVAE"
        assert check_trained(path) == path
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine/digit", "./mine/digits/x", "mine-digits"])
def test_a_name_that_is_close_is_suggested(install, name):
    install()
    with pytest.raises((CheckpointError, UnknownNameError), match="mine/digits"):
        load_tokenizer(name)


def test_what_is_registered_wrongly_is_named(install, tmp_path):
    folder = install()
    with pytest.raises(PluginError, match="'tokeniser' is no kind of trained model; give one of"):
        TrainedModel(folder, "tokeniser")
    folder.rename(tmp_path / "away")
    plugins.installed.cache_clear()
    folder.mkdir()
    assert "mine/digits" in list_models()
    folder_of = registry.get_registered("model", "mine/digits").folder
    assert folder_of == folder
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_tokenizer("mine/digits")


def test_a_folder_that_is_missing_is_named(install, tmp_path):
    missing = '{"mine/digits": TrainedModel(root / "nowhere")}'
    code = CODE.replace("TrainedModel.below(root)", missing)
    install(code=code)
    with pytest.raises(CheckpointError, match=r"registered by mine 1\.0, whose folder .*missing"):
        load_tokenizer("mine/digits")


def test_a_plugin_that_registers_something_else_is_left_out(install):
    code = CODE.replace("TrainedModel.below(root)", '{"a/b": 3}')
    install(code=code)
    with pytest.warns(RuntimeWarning, match="registers 3 as 'a/b', which is not a TrainedModel"):
        assert "a/b" not in list_models()


def test_two_packages_with_one_name_are_an_error(install):
    install("mine")
    install("yours")
    with pytest.raises(PluginError, match=r"'mine' of mine 1\.0 and by plugin 'yours' of"):
        load_tokenizer("mine/digits")


def test_a_prior_is_no_tokenizer(install):
    folder = install()
    folder.parents[2].joinpath("tokenizers").rename(folder.parents[2] / "priors")
    for take in (load_tokenizer, check_trained):
        with pytest.raises(ConfigError, match="'mine/digits' names a trained prior, not a token"):
            take("mine/digits")


def test_commands_take_the_name(install, run, tmp_path):
    install()
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.new("L", (16, 16), 90).save(picture)
    for words in (
        ["info", "mine/digits"],
        ["encode", "mine/digits", picture, "--out", "t.npz"],
        ["decode", "mine/digits", "t.npz", "--out", "decoded"],
        ["reconstruct", "mine/digits", picture, "--out", "grid.png"],
        ["changes", "mine/digits", picture, picture],
        ["doctor", "mine/digits", "--data", "digits", "--limit", 8],
        ["eval", "mine/digits", "--data", "digits", "--limit", 8, "--out", "found.json"],
        ["codes", "mine/digits", "--data", "digits", "--limit", 8, "--out", "codes.png"],
    ):
        status, _, err = run(*words)
        assert status == (1 if words[0] == "doctor" else 0), (words, err)  # of random weights
        assert "error: " not in err, (words, err)
    assert json.loads(Path("found.json").read_text())["model"] == "mine/digits"


def test_numbers_are_not_written_into_a_package(install, refused):
    install()
    message = refused("eval", "mine/digits", "--data", "digits", "--limit", 8, "--card")
    assert "mine/digits is none here" in message


def test_they_are_listed_with_what_their_cards_say(install, run):
    folder = install()
    status, out, _ = run("eval", folder, "--data", "digits", "--limit", 8, "--card")
    assert status == 0
    listed = json.loads(run("list", "models", "--json")[1])
    (row,) = [row for row in listed if row["package"] == "mine 1.0"]
    assert (row["name"], row["kind"], row["data"]) == ("mine/digits", "tokenizer", "digits")
    assert row["num_images"] == 8
    assert row["protocol"] in out
    assert row["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    table = run("list", "models")[1]
    assert f"{row['psnr']:.2f}" in table
    (folder / "README.md").unlink()
    bare = next(line for line in run("list", "models")[1].splitlines() if "mine/digits" in line)
    assert row["protocol"] not in bare


def test_a_trained_model_comes_before_a_recipe_of_its_name(install, run):
    install(name="vqvae/digits")
    status, _, err = run("compare", "vqvae/digits", "--data", "digits", "--limit", 8)
    assert status == 0, err
    assert "to train one by the recipe, write tokenizers/vqvae/digits" in err
    record = json.loads(Path("runs/compare-digits/comparison.json").read_text())
    assert "vqvae-digits" in json.dumps(record)


def test_models_below_a_folder_without_any_are_none(tmp_path):
    assert TrainedModel.below(tmp_path) == {}
