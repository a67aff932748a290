"""Folders of priors, pipelines and text encoders that are damaged, or written to do harm."""

from __future__ import annotations

import json
import os
import resource
import stat
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectok import load_tokenizer
from spectok.errors import CheckpointError, ConfigError, SpectokError
from spectok.evaluation import load_classifier
from spectok.loading import load_trained
from spectok.testing.small import small_tokenizer
from spectok.training import load_tokenizer_recipe
from spectok_generation import (
    TokenCache,
    TokenPipeline,
    create_prior,
    load_prior,
    load_text_encoder,
)
from spectok_generation.pairs import load_pair
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.records import tokenizer_record
from spectok_generation.text.clip import model_config
from spectok_generation.text.clip_recipe import ClipConfig

SIZES = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16},
    "pixelcnn": {"num_layers": 2, "width": 8},
    "maskgit": {"num_layers": 1, "num_heads": 2, "width": 16},
    "ldm": {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 40},
}
CLIP = model_config(
    ClipConfig(
        embed_dim=12,
        patch_size=16,
        image_layers=1,
        image_width=16,
        text_layers=1,
        text_width=16,
        head_width=8,
        context_length=8,
    ),
    (3, 32, 32),
)
WEIGHTS = "diffusion_pytorch_model.safetensors"
HUGE = [10**12, 10**6, -1, 0, "8", None, [1] * 20_000]


def make(name, seed=0):
    torch.manual_seed(seed)
    tokenizer = small_tokenizer("vqvae", in_channels=3).eval()
    record = tokenizer_record(tokenizer, None)
    prior = create_prior(name, tokenizer.token_spec, tokenizer=record, **SIZES[name])
    return tokenizer, prior.eval()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(function, *arguments, **options):
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(SpectokError) as caught:
        function(*arguments, **options)
    assert time.monotonic() - started < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1500
    return message


# -- priors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt", ("num_layers", "width", "num_classes")),
        ("pixelcnn", ("num_layers", "width", "num_classes")),
        ("maskgit", ("num_layers", "width", "num_classes")),
        ("ldm", ("channels", "layers", "num_classes")),
    ],
)
def test_a_config_of_a_prior_takes_neither_time_nor_memory(tmp_path, name, options):
    make(name)[1].save_pretrained(tmp_path)
    original = (tmp_path / "config.json").read_text()
    for option in options:
        for value in HUGE:
            if json.loads(original)[option] == value or (option, value) == ("num_layers", None):
                continue
            given = [value] if option == "channels" and isinstance(value, int) else value
            edit(tmp_path / "config.json", **{option: given})
            assert str(tmp_path) in refusal(load_prior, tmp_path)
            (tmp_path / "config.json").write_text(original)


@pytest.mark.parametrize(
    "level",
    [
        {"shape": [10**6, 10**6]},
        {"shape": [10**9]},
        {"shape": [10**6]},
        {"shape": ["x"]},
        {"shape": []},
        {"shape": None},
        {"vocab_size": 10**9},
        {"vocab_size": 10**6},
        {"vocab_size": "x"},
        {"num_codebooks": 0},
        {"codebook": "x"},
        {"bogus": 1},
    ],
)
@pytest.mark.parametrize("name", ["gpt", "pixelcnn", "maskgit"])
def test_a_layout_of_a_prior_takes_neither_time_nor_memory(tmp_path, name, level):
    make(name)[1].save_pretrained(tmp_path)
    spec = json.loads((tmp_path / "config.json").read_text())["token_spec"]
    spec["levels"][0] |= level
    edit(tmp_path / "config.json", token_spec=spec)
    assert str(tmp_path) in refusal(load_prior, tmp_path)


@pytest.mark.parametrize("record", ["x", 3, [], {"latent_shape": "x"}, {"latent_shape": [1, 2]}])
def test_a_record_that_is_none_is_refused(tmp_path, record):
    make("ldm")[1].save_pretrained(tmp_path)
    edit(tmp_path / "config.json", tokenizer=record)
    assert str(tmp_path) in refusal(load_prior, tmp_path)


@pytest.mark.parametrize("name", [["GPT"], {"GPT": 1}, 3, None])
def test_a_class_of_a_prior_that_is_no_name_is_refused(tmp_path, name):
    make("gpt")[1].save_pretrained(tmp_path)
    edit(tmp_path / "config.json", _class_name=name)
    assert "model of no known class" in refusal(load_prior, tmp_path)


def test_weights_of_a_prior_that_are_not_finite_are_named(tmp_path):
    prior = make("gpt")[1]
    prior.start_vectors.weight.data[0, 0] = float("nan")
    prior.save_pretrained(tmp_path)
    assert "start_vectors.weight are not finite" in refusal(load_prior, tmp_path)


def test_the_last_save_of_a_prior_is_loaded(tmp_path):
    first, second = (make("gpt", seed)[1] for seed in (0, 1))
    first.save_pretrained(tmp_path, max_shard_size="10KB")
    second.save_pretrained(tmp_path)
    found = load_prior(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in second.state_dict().items())


# -- pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [".", "", "..", "new/", "../b//"])
def test_a_pipeline_is_saved_wherever_it_is_asked_to(tmp_path, monkeypatch, where):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for seed in (0, 1):
        TokenPipeline(*make("gpt", seed)).save_pretrained(where)
    loaded, expected = TokenPipeline.from_pretrained(where or "."), make("gpt", 1)
    for part, other in zip((loaded.tokenizer, loaded.prior), expected):
        state = part.state_dict()
        assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())


def test_files_of_a_pipeline_are_as_readable_as_any(tmp_path):
    before = os.umask(0o022)
    try:
        TokenPipeline(*make("gpt")).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


class Killed(BaseException):
    """Stands for a kill: no handler of the program sees it."""


def test_a_kill_between_renames_never_leaves_a_mixed_pipeline(tmp_path, monkeypatch):
    old, new = (TokenPipeline(*make("gpt", seed)) for seed in (0, 1))
    real, done, moment = os.replace, False, 0
    while not done:
        folder, calls = tmp_path / str(moment), iter(range(1000))
        old.save_pretrained(folder)
        with monkeypatch.context() as patch:

            def replace(*arguments, calls=calls, moment=moment, folder=folder):
                target = os.fspath(arguments[1]).removeprefix(f"{folder}/")
                writing = target.startswith(".partial/") and "replaced" not in target
                if not writing and next(calls) == moment:
                    raise Killed
                return real(*arguments)

            patch.setattr(os, "replace", replace)
            patch.setattr("shutil.rmtree", lambda *_, **__: None)
            try:
                new.save_pretrained(folder)
                done = True
            except Killed:
                pass
        if (folder / "model_index.json").exists():
            found = TokenPipeline.from_pretrained(folder)
            kinds = [
                [torch.equal(a, b) for a, b in zip(p.prior.parameters(), found.prior.parameters())]
                for p in (old, new)
            ]
            assert all(kinds[1 if done else 0])
        else:
            assert "cut short" in refusal(TokenPipeline.from_pretrained, folder)
            assert "cut short" in refusal(load_pair, folder)
            new.save_pretrained(folder)
            TokenPipeline.from_pretrained(folder)
        moment += 1
    assert moment > 4


@pytest.mark.parametrize(
    "text",
    ["[" * 99_999, "[1]", "null", '{"prior": ' + "9" * 9999 + "}", "\0", '{"prior": [1, 2]}'],
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    TokenPipeline(*make("gpt")).save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(text)
    refusal(TokenPipeline.from_pretrained, tmp_path)


def test_latents_of_another_shape_than_recorded_are_refused(tmp_path):
    tokenizer, prior = make("ldm")
    TokenPipeline(tokenizer, prior).save_pretrained(tmp_path)
    path = tmp_path / "prior" / "config.json"
    record = json.loads(path.read_text())["tokenizer"]
    edit(path, tokenizer=record | {"latent_shape": [record["latent_shape"][0], 10**6, 10**6]})
    message = refusal(TokenPipeline.from_pretrained, tmp_path)
    assert "recorded for a tokenizer of latent_shape" in message


# -- text encoders ---------------------------------------------------------------------------------


@pytest.fixture(params=["whole", "half"])
def clip(request, save_small_clip, tmp_path):
    """A saved CLIP, and one of which only the text half was saved, with their weights' names."""
    save_small_clip(tmp_path / "whole", CLIP)
    if request.param == "half":
        load_text_encoder(str(tmp_path / "whole")).save_pretrained(tmp_path / "half")
    return tmp_path / request.param


@pytest.mark.parametrize("part", ["text_cfg", "vision_cfg"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("layers", [10**12, 10**5, -1, "x"]),
        ("width", [10**12, 10**6, -1]),
        ("context_length", [10**12, 10**6]),
        ("vocab_size", [10**12, 10**6, "x"]),
    ],
)
def test_a_config_of_a_clip_takes_neither_time_nor_memory(clip, part, key, values):
    path = clip / "open_clip_config.json"
    original = json.loads(path.read_text())
    if key not in original["model_cfg"][part] or (part == "vision_cfg" and clip.name == "half"):
        pytest.skip("no such option, or one of the half that is dropped")
    for value in values:
        config = json.loads(json.dumps(original))
        config["model_cfg"][part][key] = value
        path.write_text(json.dumps(config))
        assert str(clip) in refusal(load_text_encoder, str(clip))


@pytest.mark.parametrize("content", [[], {}, {"model_cfg": []}, {"model_cfg": {"text_cfg": 1}}, 3])
def test_a_config_of_a_clip_that_is_none_is_refused(clip, content):
    (clip / "open_clip_config.json").write_text(json.dumps(content))
    assert "is not the config of a CLIP" in refusal(load_text_encoder, str(clip))


def test_weights_of_a_clip_that_are_not_finite_are_named(clip):
    path = next(clip.glob("*.safetensors"))
    weights = load_file(path)
    weights["ln_final.weight"][0] = float("inf")
    save_file(weights, path)
    assert "ln_final.weight are not finite" in refusal(load_text_encoder, str(clip))


def test_a_clip_that_replaces_another_kind_is_the_one_that_loads(save_small_clip, tmp_path):
    save_small_clip(tmp_path / "a", CLIP)
    save_small_clip(tmp_path / "b", CLIP)
    first, second = (load_text_encoder(str(tmp_path / name)) for name in "ab")
    first.save_pretrained(tmp_path / "a")
    assert load_text_encoder(str(tmp_path / "a")).fingerprint == first.fingerprint
    assert [path.name for path in (tmp_path / "a").glob("*.safetensors")] == [
        "open_clip_text.safetensors"
    ]
    second.save_pretrained(tmp_path / "a")
    assert load_text_encoder(str(tmp_path / "a")).fingerprint == second.fingerprint
    save_small_clip(tmp_path / "a", CLIP)
    assert [path.name for path in (tmp_path / "a").glob("*.safetensors")] == [
        "open_clip_model.safetensors"
    ]


def test_a_kind_of_text_half_that_is_unknown_is_refused(clip):
    if clip.name == "half":
        edit(clip / "open_clip_config.json", text_half=["CLIP"])
        with pytest.raises(CheckpointError, match="names an unknown text_half"):
            load_text_encoder(str(clip))


READERS = (
    load_tokenizer,
    load_trained,
    load_tokenizer_recipe,
    load_prior_recipe,
    load_prior,
    load_pair,
    load_text_encoder,
    load_classifier,
    TokenCache,
    lambda name: load_prior_recipe("gpt", [("tokenizer", name)]),
    lambda name: load_prior_recipe("cat", [("text.encoder", name), ("tokenizer", "vqvae")]),
    lambda name: load_tokenizer_recipe("vqvae", [("tokenizer.quantizer", name)]),
)


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300, "a\udcff", "/a\udcff", "a\0b", ""])
def test_what_cannot_be_a_name_is_refused_everywhere(name):
    for read in READERS:
        with pytest.raises(SpectokError):
            read(name)


@pytest.mark.parametrize("text", ["a\udcff", ["x", "\ud800"], {"name": "\udfff"}])
def test_text_that_is_no_utf_8_is_refused_in_a_recipe(text):
    with pytest.raises(ConfigError, match="is no text in UTF-8"):
        load_tokenizer_recipe("vqvae", [("tokenizer.quantizer", text)])
