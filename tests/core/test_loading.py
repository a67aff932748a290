"""Loading a tokenizer: the right class with every weight, or one line that says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
from multiprocessing import get_context

import pytest
import torch
from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from safetensors.torch import load_file, save_file

from spectok import load_tokenizer
from spectok.errors import CheckpointError, ConfigError, UnknownNameError
from spectok.testing.small import small_tokenizer
from spectok_qgvae.model import QGVAE
from spectok_vq.model import VQVAE

IMAGES = torch.linspace(-1, 1, 2 * 16 * 16).view(2, 1, 16, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "trained"
    small_tokenizer("vqvae").save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    """A copy of the saved model that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def failure(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(folder) in message
    return message


def edit_weights(folder, edit):
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS)


# -- what works ---


def test_a_key_gives_a_fresh_model_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_tokenizer("vqvae", image_size=8, channels=8, in_channels=1)
    assert isinstance(model, VQVAE)
    assert model.training
    assert model.encode(torch.zeros(1, 1, 8, 8)).shape == (1, model.token_spec.num_tokens)


def test_a_directory_gives_the_trained_model(saved, tmp_path, monkeypatch):
    first = load_tokenizer(saved)
    assert not first.training
    monkeypatch.chdir(saved.parent)
    for name in (str(saved), saved.name, f"./{saved.name}"):
        again = load_tokenizer(name)
        assert torch.equal(again.encode(IMAGES), first.encode(IMAGES))
    assert again.config["image_size"] == 16


def test_a_subfolder_of_a_directory(saved):
    model = load_tokenizer(saved.parent, subfolder="trained")
    assert torch.equal(model.encode(IMAGES), load_tokenizer(saved).encode(IMAGES))


def test_the_class_is_found_by_what_was_saved(tmp_path):
    small_tokenizer("qgvae").save_pretrained(tmp_path / "m")
    assert isinstance(load_tokenizer(tmp_path / "m"), QGVAE)


def test_the_quantizer_stays_float32_in_half_precision(saved):
    model = load_tokenizer(saved, torch_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {value.dtype for value in model.quantizer.buffers()} <= {torch.float32, torch.int64}


# -- names ---


def test_an_unknown_name_lists_what_is_installed_and_the_closest():
    with pytest.raises(UnknownNameError) as caught:
        load_tokenizer("qgvea")
    message = str(caught.value)
    assert "unknown tokenizer 'qgvea' (did you mean 'qgvae'?); installed: " in message
    assert "vqvae" in message
    assert "directory" in message


def test_a_missing_directory_is_called_that(tmp_path):
    missing = tmp_path / "nothing"
    assert f"{missing} does not exist" in failure(missing)
    with pytest.raises(CheckpointError, match="does not exist"):
        VQVAE.from_pretrained(missing)


def test_what_looks_like_a_hub_id_says_what_it_was_taken_for():
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer("somebody/vqvae")
    message = str(caught.value)
    assert "cannot fetch 'somebody/vqvae'" in message
    assert "no registered key" in message
    assert "it is no local directory either" in message


def test_misspelt_options_are_refused():
    with pytest.raises(ConfigError, match=r"vqvae\.channel: unknown key .*'channels'"):
        load_tokenizer("vqvae", channel=8)


# -- damaged checkpoints ---


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused(model, share):
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: int(share * len(content))])
    assert "cannot load" in failure(model)


def test_garbage_is_refused(model):
    (model / WEIGHTS).write_bytes(b"not tensors" * 1000)
    assert "cannot load" in failure(model)


@pytest.mark.parametrize("name", ["encoder.0.weight", "quantizer.codebook"])
def test_a_missing_parameter_or_buffer_is_named(model, name):
    edit_weights(model, lambda weights: weights.pop(name))
    message = failure(model)
    assert "does not fit VQVAE: missing keys (1)" in message
    assert name in message


def test_an_unexpected_key_is_named(model):
    edit_weights(model, lambda weights: weights.update(extra=torch.zeros(2)))
    assert "unexpected keys (1): extra" in failure(model)


def test_a_wrong_shape_is_refused(model):
    edit_weights(model, lambda weights: weights.update({"encoder.0.bias": torch.zeros(99)}))
    assert "encoder.0.bias" in failure(model)


def test_an_architecture_cannot_be_overridden_at_loading(model):
    for option in ({"codebook_size": 64}, {"reconstruction_loss": "l1"}, {"bogus": 1}):
        with pytest.raises(ConfigError, match=f"{next(iter(option))} cannot be set on a trained"):
            load_tokenizer(model, **option)


def test_a_checkpoint_of_another_class_is_refused(model):
    with pytest.raises(CheckpointError, match="holds a VQVAE, not QGVAE"):
        QGVAE.from_pretrained(model)


def test_a_class_that_nothing_provides_is_named(model):
    config = json.loads((model / "config.json").read_text())
    config["_class_name"] = "FancyVAE"
    (model / "config.json").write_text(json.dumps(config))
    message = failure(model)
    assert "holds a FancyVAE, which no installed plugin provides" in message
    assert "VQVAE" in message


def test_options_that_the_class_does_not_take_are_refused(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"channel": 8}))
    message = failure(model)
    assert "has options in config.json that VQVAE does not take: channel" in message


def test_a_config_that_is_missing_or_no_json_is_refused(model):
    (model / "config.json").write_text("{")
    assert "is not valid JSON" in failure(model)
    (model / "config.json").unlink()
    assert "has no config.json" in failure(model)


class Explodes:
    """What an attacker would put into a pickle."""

    def __reduce__(self):
        return (os.abort, ())


def test_pickles_are_never_read(model):
    (model / WEIGHTS).unlink()
    (model / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Explodes()))
    assert "cannot load" in failure(model)


# -- saving ---


def test_saving_onto_a_file_is_refused(tmp_path):
    target = tmp_path / "model"
    target.write_text("something of mine")
    with pytest.raises(CheckpointError, match="is a file; give a directory"):
        small_tokenizer("vqvae").save_pretrained(target)
    assert target.read_text() == "something of mine"


def save_on_a_full_disk(model, folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        model.save_pretrained(folder)
    except CheckpointError as error:
        os._exit(0 if f"cannot save to {folder}" in str(error) else 3)
    os._exit(4)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_full_disk_leaves_the_earlier_model(saved, tmp_path):
    folder = tmp_path / "model"
    load_tokenizer(saved).save_pretrained(folder)
    other = small_tokenizer("vqvae")
    process = get_context("fork").Process(target=save_on_a_full_disk, args=(other, folder))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert torch.equal(load_tokenizer(folder).encode(IMAGES), load_tokenizer(saved).encode(IMAGES))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
