"""A path is a path: what is sent to a hub, what ``~`` is, and what a message says is there."""

from __future__ import annotations

import re
import socket
import time

import pytest

from spectok import hub, load_tokenizer, places
from spectok.cli import main
from spectok.cli.competitors import name_competitors
from spectok.data.choice import check_choice, data_override
from spectok.data.data_config import DataConfig, kind_of_path
from spectok.data.tables import read_hub
from spectok.errors import CheckpointError, ConfigError, DataError
from spectok.loading import check_trained, load_trained
from spectok.places import may_be_hub_id, missing
from spectok.testing.small import small_tokenizer
from spectok.training.recipe import load_tokenizer_recipe
from spectok_generation import load_prior

PATHS = ["runs/none", "./a/b", "a/b/", "~/a", "/a/b", "a/b/c", "my a/b", "a/b.yaml", "here/b"]
PATHS += ["a/-b", "a--b/c", "é/b", "a/b.parquet", "../a", "a/b.git", "Runs/none", "models\\x"]
PATHS += ["file.txt", "file.txt/x", "none.txt", "gone", "gone/x", "C:\\models\\x"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory to be in, the home directory, with a folder, a file and a link to nothing."""
    (tmp_path / "here" / "nine").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    (tmp_path / "gone").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places._say.cache_clear()
    hub.ask.cache_clear()
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch):
    """Fail where a hub is asked."""

    def ask(*words, **_):
        pytest.fail(f"a hub was asked for {words}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_written_as_a_path_is_never_sent_to_a_hub(path, here, no_hub):
    assert not may_be_hub_id(path)
    assert kind_of_path(path) != "hub"
    for load in (load_tokenizer, load_trained, check_trained):
        with pytest.raises(CheckpointError, match=r"does not exist|no directory"):
            load(path)


@pytest.mark.parametrize("name", ["amused/amused-256", "a/b", "CompVis/sd-v1.4", "a.b/c_d"])
def test_an_owner_and_a_name_may_be_on_a_hub(name, here):
    assert may_be_hub_id(name)
    assert check_trained(name) == name


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("here/nin", "(did you mean 'here/nine'?)"),
        ("hree/nine", "(did you mean 'here/nine'?)"),
        ("here/other", "(here holds nine)"),
        ("here/x/y", "(there is no here/x)"),
        ("runs/none", "(there is no runs)"),
        ("gone", "(gone is a link to nothing, which is gone)"),
    ],
)
def test_a_message_names_what_is_there_instead(path, told, here):
    assert missing(path) == f"{path} does not exist {told}"
    with pytest.raises(DataError, match=re.escape(f"./{path} does not exist")):
        check_choice(f"./{path}")


def test_what_is_called_like_a_file_is_data_that_does_not_exist(here):
    for path, told in (("none.txt", "none.txt does not exist"), ("file.txt", "is not a directory")):
        with pytest.raises(DataError, match=told):
            check_choice(path)


@pytest.mark.parametrize("load", [load_tokenizer, load_trained, check_trained, load_prior])
def test_an_empty_name_does_not_mean_this_directory(load, here):
    small_tokenizer("vqvae").save_pretrained(here)
    with pytest.raises(CheckpointError, match="the name of a model is empty"):
        load("")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("clip/shapes", "spectok train clip clip/shapes"),
        ("gpt/digits", "spectok train prior gpt/digits"),
        ("qgvae/digits", "spectok train qgvae/digits"),
        ("tokenizers/qgvae/digits", "spectok train tokenizers/qgvae/digits"),
    ],
)
def test_the_name_of_a_recipe_is_never_sent_to_a_hub(name, command, here, no_hub):
    told = f"{name} is a recipe, not a trained model: {command} trains it"
    for load in (load_tokenizer, load_trained, check_trained, load_prior):
        with pytest.raises(CheckpointError, match=told):
            load(name)


def test_home_is_known_everywhere(here, capsys):
    small_tokenizer("vqvae").save_pretrained("~/here/model")
    assert (here / "here" / "model" / "config.json").is_file()
    for path in ("~/here/model", "~/here"):
        assert type(load_tokenizer(path)).__name__ == "VQVAE"
        assert check_trained(path) == path
    (here / "mine.yaml").write_text("tokenizer: vqvae\ninit_from: ~/here\n")
    assert load_tokenizer_recipe("~/mine.yaml").init_from == "~/here"
    for words in (["info", "~/here"], ["doctor", "~/here/model"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code in (0, 1)
    assert "error" not in capsys.readouterr().err


def test_a_registered_name_comes_before_a_folder_and_a_note_says_how_to_get_it(here, capsys):
    small_tokenizer("qgvae").save_pretrained("vqvae")
    (here / "digits").mkdir()
    assert type(load_tokenizer("vqvae", image_size=16)).__name__ == "VQVAE"
    assert data_override("digits") == ("data", {"name": "digits"})
    assert name_competitors(["vqvae"], None, [])["vqvae"].recipe is not None
    noted = capsys.readouterr().err
    assert noted.count("vqvae is taken for") == 1
    for name in ("vqvae", "digits"):
        assert f"note: {name} is taken for" in noted
        assert f"write ./{name}\n" in noted
    with pytest.raises(ConfigError, match=r"the folder here is \./vqvae"):
        check_trained("vqvae")
    assert type(load_tokenizer("./vqvae")).__name__ == "QGVAE"
    assert data_override("digits/")[1] == {"name": "folder", "path": "digits/"}
    assert name_competitors(["./vqvae"], None, [])["vqvae"].recipe is None


def test_a_hub_that_is_asked_is_named_at_once(here, monkeypatch, capsys):
    said = []

    def ask(*_, **__):
        said.append(capsys.readouterr().err)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    monkeypatch.setattr(hub, "answers", lambda: True)
    with pytest.raises(CheckpointError, match="cannot fetch"):
        load_tokenizer("some/body")
    line = "note: asking the Hugging Face hub (https://huggingface.co) for the model some/body\n"
    assert said == [line]


def test_a_hub_that_takes_a_call_and_says_nothing_is_left_within_seconds(here, monkeypatch, capsys):
    """As behind a proxy that accepts everything; models and data sets alike."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
        monkeypatch.setattr(hub, "PATIENCE", 0.2)
        began = time.monotonic()
        with pytest.raises(CheckpointError, match="cannot fetch"):
            load_tokenizer("some/body")
        with pytest.raises(DataError, match="cannot load"):
            read_hub("some/data", DataConfig(name="some/data"))
        assert time.monotonic() - began < 5
    assert capsys.readouterr().err.count("the hub does not answer") == 1
