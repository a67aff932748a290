"""Saved models: a save replaces what it replaces, and a folder is believed only after checks."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import stat
import struct
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from spectok import list_tokenizers, load_tokenizer
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.evaluation.classifier import ImageClassifier, load_classifier
from spectok.images import save_grid, to_pil
from spectok.saving import saving
from spectok.testing.small import small_tokenizer
from spectok.weights import find_weights, reading_reason, weight_names

IMAGES = torch.linspace(-1, 1, 2 * 16 * 16).view(2, 1, 16, 16)
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARDED = {"max_shard_size": "20KB"}


def make(seed, **options):
    torch.manual_seed(seed)
    return small_tokenizer("vqvae", **options).eval()


A, B = make(0), make(1)


def loads(folder, model, **options):
    """Return whether a folder loads as this model."""
    found = load_tokenizer(folder, **options).state_dict()
    return all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def refusal(folder, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        load_tokenizer(folder, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1500
    return message


def edit(folder, name="config.json", **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


@pytest.fixture
def folder(tmp_path):
    A.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


# -- saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [{}, SHARDED])
@pytest.mark.parametrize("second", [{}, SHARDED, {"max_shard_size": "60KB"}])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_last_save_is_loaded(tmp_path, first, second, variant):
    A.save_pretrained(tmp_path, variant=variant, **first)
    B.save_pretrained(tmp_path, variant=variant, **second)
    assert loads(tmp_path, B, variant=variant)
    pattern = "*.fp16*" if variant else "diffusion*"
    assert len(list(tmp_path.glob(pattern))) == len(list(tmp_path.glob("diffusion*")))


def test_a_save_removes_nothing_else(tmp_path):
    A.save_pretrained(tmp_path, variant="ema", **SHARDED)
    A.save_pretrained(tmp_path, **SHARDED)
    others = ["README.md", "model.safetensors", "diffusion_pytorch_model.bin"]
    others += ["diffusion_pytorch_model_old.safetensors", "my diffusion_pytorch_model.safetensors"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "samples").mkdir()
    kept = {path.name for path in tmp_path.glob("*.ema*")} | {*others, "samples"}
    B.save_pretrained(tmp_path)
    own = {WEIGHTS, "config.json", "preprocessor_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == kept | own
    assert loads(tmp_path, B)
    assert loads(tmp_path, A, variant="ema")


@pytest.mark.parametrize(
    ("where", "place"),
    [
        (".", "a"),
        ("", "a"),
        ("..", "."),
        ("m/", "a/m"),
        ("./../a/n", "a/n"),
        ("../b//", "b"),
        ("link", "real"),
    ],
)
def test_any_spelling_of_a_folder_will_do(tmp_path, monkeypatch, where, place):
    (tmp_path / "a").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "a")
    A.save_pretrained(where)
    B.save_pretrained(where)
    assert loads(tmp_path / place, B)
    assert loads(where or ".", B)


@pytest.mark.parametrize("where", ["a\0b", "\ud800"])
def test_what_is_no_path_is_refused(where):
    with pytest.raises(CheckpointError):
        A.save_pretrained(where)
    with pytest.raises(CheckpointError):
        type(A).from_pretrained(where)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "../up"}, "variant '../up' is not letters and digits"),
        ({"variant": ""}, "variant '' is not"),
        ({"safe_serialization": False}, "saved as safetensors"),
        ({"push_to_hub": True}, "uploaded with push_to_hub"),
    ],
)
def test_a_save_refuses_options_before_it_writes(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        A.save_pretrained(tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def test_only_the_main_process_writes(tmp_path):
    A.save_pretrained(tmp_path / "m", is_main_process=False)
    assert not (tmp_path / "m").exists()


class Killed(BaseException):
    """Stands for a kill: no handler of the program sees it."""


@pytest.mark.parametrize("change", ["same options", "other options"])
@pytest.mark.parametrize("first", [{}, SHARDED])
@pytest.mark.parametrize("second", [{}, SHARDED])
def test_a_kill_between_renames_never_leaves_a_mix(tmp_path, monkeypatch, first, second, change):
    new = make(1, reconstruction_loss="l1") if change == "other options" else B
    names = ("replace", "unlink")
    originals = {name: getattr(os, name) for name in names}

    def kill_at(moment):
        calls = iter(range(1000))

        def counted(name):
            def call(*arguments, **options):
                if next(calls) == moment:
                    raise Killed
                return originals[name](*arguments, **options)

            return call

        for name in names:
            monkeypatch.setattr(os, name, counted(name))
        monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)

    for moment in range(100):
        folder = tmp_path / str(moment)
        A.save_pretrained(folder, **first)
        with monkeypatch.context():
            kill_at(moment)
            try:
                new.save_pretrained(folder, **second)
                done = True
            except Killed:
                done = False
            monkeypatch.undo()
        if (folder / "config.json").exists():
            found, loss = load_tokenizer(folder), "reconstruction_loss"
            assert any(
                loads(folder, model) and found.config[loss] == model.config[loss]
                for model in (A, new)
            ), moment
        else:
            assert "cut short" in refusal(folder)
            new.save_pretrained(folder, **second)
            assert loads(folder, new)
        if done:
            break
    assert loads(folder, new)
    assert moment >= 2


def test_a_failed_save_leaves_no_new_folder(tmp_path):
    with pytest.raises(CheckpointError, match="cannot save to"), saving(tmp_path / "m", "x"):
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_weights_are_as_readable_as_their_config(tmp_path, umask):
    before = os.umask(umask)
    try:
        A.save_pretrained(tmp_path / "m", **SHARDED)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "m").iterdir()}
    assert modes == {0o666 & ~umask}


# -- what a folder may hold ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling link"])
def test_what_is_no_file_is_refused(folder, name, kind):
    (folder / name).unlink()
    if kind == "directory":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("nowhere")
    assert str(folder) in refusal(folder)


NAMES = [["VQVAE"], {"VQVAE": 1}, 3, None, True, "", "os.system", "VQVAE\nerror: x", "X" * 9000]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: str(name)[:9])
def test_a_class_that_is_no_name_is_refused(folder, name):
    edit(folder, _class_name=name)
    assert "model of no known class" in refusal(folder) or name == "X" * 9000
    with pytest.raises(CheckpointError):
        type(A).from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"_class_name": "VQVAE", "channels": ' + "9" * 10_000 + "}",
        "[1, 2]",
        "\x00",
        "",
        "NaN",
    ],
    ids=["lists", "objects", "digits", "list", "nul", "empty", "nan"],
)
def test_a_config_that_is_no_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refusal(folder)


def quickly(function, seconds=8, megabytes=200):
    """Call a function, which may take no more time and memory than this."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    result = function()
    assert time.monotonic() - started < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * megabytes
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook_size": 10_000_000},
        {"codebook_size": 1_000_000},
        {"num_blocks": 10**12},
        {"num_blocks": 10**6},
        {"channels": 10**9},
        {"channels": 10**6},
        {"image_size": 10**9},
        {"channels": 1.5},
        {"channels": "8"},
        {"channels": -8},
        {"channels": None},
        {"channels": [8]},
        {"quantizer": {"name": "vq", "bogus": 1}},
        {"quantizer": "nothing"},
        {"quantizer": {"name": "rq", "num_levels": 10**9}},
        {"quantizer": {"name": "rq", "num_levels": 10**6}},
        {"channel_multipliers": [1] * 10**6},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"auto_map": {"AutoModel": "evil.X"}},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_a_config_takes_neither_time_nor_memory(folder, changes):
    edit(folder, **changes)
    message = quickly(lambda: refusal(folder))
    assert any(word in message for word in (*changes, "mismatched", "far larger"))


def load_or_refuse(folder):
    """Load a model whose option may or may not change the network."""
    with contextlib.suppress(CheckpointError):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", list_tokenizers())
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(10**12, id="huge"),
        pytest.param(10**6, id="large", marks=pytest.mark.slow),
        pytest.param([1] * 10**6, id="list", marks=pytest.mark.slow),
    ],
)
def test_no_option_of_any_tokenizer_takes_time_or_memory(name, value, tmp_path):
    model = small_tokenizer(name)
    model.save_pretrained(tmp_path)
    original = (tmp_path / "config.json").read_text()
    for option, given in json.loads(original).items():
        if isinstance(given, int | list) and not isinstance(given, bool):
            edit(tmp_path, **{option: value})
            quickly(lambda: load_or_refuse(tmp_path))
            (tmp_path / "config.json").write_text(original)


def test_a_trusted_config_still_has_to_fit(folder):
    edit(folder, codebook_size=2_000_000)
    assert "trust=True" in refusal(folder)
    assert "quantizer.codebook of shape" in refusal(folder, trust=True)
    edit(folder, codebook_size=A.config["codebook_size"])
    assert loads(folder, A, trust=True)


def test_a_codebook_without_weights_may_be_larger_than_the_weights(tmp_path):
    model = make(0, quantizer="lfq", codebook_size=2**18, codebook_dim=18)
    model.save_pretrained(tmp_path)
    assert loads(tmp_path, model)


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "uint8", "int64"])
def test_weights_of_another_kind_are_named(folder, dtype):
    weights = load_file(folder / WEIGHTS)
    weights["encoder.0.weight"] = weights["encoder.0.weight"].to(getattr(torch, dtype))
    save_file(weights, folder / WEIGHTS)
    assert f"encoder.0.weight of {dtype} instead of float32" in refusal(folder)


def test_floats_where_integers_belong_are_named(tmp_path):
    model = make(0)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    name = next(name for name, value in weights.items() if value.dtype == torch.int64)
    weights[name] = weights[name].float()
    save_file(weights, tmp_path / WEIGHTS)
    assert f"{name} of float32 instead of int64" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_any_float_will_do(folder, dtype):
    weights = load_file(folder / WEIGHTS)
    save_file(
        {
            k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v
            for k, v in weights.items()
        },
        folder / WEIGHTS,
    )
    model = load_tokenizer(folder)
    assert model.dtype == torch.float32
    assert load_tokenizer(folder, torch_dtype="auto").dtype == getattr(torch, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["encoder.0.weight", "decoder.0.bias", "quantizer.codebook"])
@pytest.mark.parametrize("options", [{}, SHARDED], ids=["one file", "shards"])
def test_numbers_that_are_not_finite_are_named(tmp_path, name, value, options):
    model = make(0)
    model.state_dict()[name].view(-1)[3] = value
    model.save_pretrained(tmp_path, **options)
    assert f"numbers of {name} are not finite in float32" in refusal(tmp_path)


def test_an_overflow_of_the_asked_type_is_named(tmp_path):
    model = make(0)
    model.state_dict()["encoder.0.weight"].view(-1)[0] = 1e10
    model.save_pretrained(tmp_path)
    assert "encoder.0.weight are not finite in float16" in refusal(tmp_path, torch_dtype="float16")
    assert loads(tmp_path, model)


def test_a_classifier_is_checked_alike(tmp_path):
    model = ImageClassifier((1, 16, 16), 3, channels=4, feature_dim=8, trained_on="x").eval()
    model.save_pretrained(tmp_path)
    assert load_classifier(tmp_path).fingerprint == model.fingerprint
    low = ImageClassifier.from_pretrained(tmp_path, torch_dtype="bfloat16")
    assert low(IMAGES).dtype == torch.bfloat16
    edit(tmp_path, feature_dim=10**9)
    with pytest.raises(CheckpointError, match="feature_dim 1000000000"):
        quickly(lambda: load_classifier(tmp_path))
    edit(tmp_path, feature_dim=8)
    model.head.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.bias are not finite"):
        load_classifier(tmp_path)


def make_shards(folder, **weight_map):
    A.save_pretrained(folder, **SHARDED)
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder, INDEX, weight_map=table | weight_map)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: make_shards(f, **{"encoder.0.weight": "../x.safetensors"}), "no file of this"),
        (lambda f: make_shards(f, **{"encoder.0.weight": "/etc/x.safetensors"}), "no file of this"),
        (lambda f: make_shards(f, **{"encoder.0.weight": "x.bin"}), "no file of this"),
        (lambda f: make_shards(f, **{"encoder.0.weight": "gone.safetensors"}), "no gone.saf"),
        (lambda f: make_shards(f, **{"encoder.0.weight": 3}), "lists no weights"),
        (lambda f: make_shards(f, **{"encoder.0.weight": "a\0.safetensors"}), "a"),
        (lambda f: (make_shards(f), edit(f, INDEX, weight_map=[1])), "lists no weights"),
        (lambda f: (make_shards(f), (f / INDEX).write_text("[" * 99999)), "too deeply"),
        (lambda f: (make_shards(f), next(f.glob("*-00002-of-*")).unlink()), "has no diffusion"),
        (lambda f: (make_shards(f), save_file({}, f / WEIGHTS)), "left over from an earlier save"),
        (
            lambda f: (make_shards(f), (f / INDEX).rename(f / INDEX.replace(".index", ".index.x"))),
            "it has no diffusion",
        ),
    ],
)
def test_damaged_shards_are_refused(tmp_path, damage, message):
    damage(tmp_path)
    assert message in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    make_shards(tmp_path)
    one, other = sorted(tmp_path.glob("*-of-*"))[:2]
    save_file(load_file(one) | load_file(other), other)
    assert "as does another file" in refusal(tmp_path)


def test_a_header_is_not_believed(folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 90 << 20) + b"{}")
    assert "its header claims 94,371,840 bytes" in quickly(lambda: refusal(folder))
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    content = struct.pack("<Q", len(header)) + header.encode()
    (folder / WEIGHTS).write_bytes(content)
    assert "cannot load" in quickly(lambda: refusal(folder))


def test_the_files_of_a_variant_are_its_own(tmp_path):
    A.save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in find_weights(tmp_path, "fp16")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    assert "no diffusion_pytorch_model.safetensors" in refusal(tmp_path)
    assert "fp16" not in weight_names()


def test_pickles_are_refused_without_pytorch_s_advice(tmp_path):
    torch.save(Path(), tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(tmp_path / "x.pt", weights_only=True)
    reason = reading_reason(caught.value)
    assert "not unpickled" in reason
    assert "weights_only" not in reason
    assert "trust" not in reason


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("options", [{}, SHARDED], ids=["one file", "shards"])
def test_what_loading_needs_is_fetched_from_the_hub(tmp_path, monkeypatch, variant, options):
    for other in (None, "fp16", "ema"):
        A.save_pretrained(tmp_path / "repo" / "inside", variant=other, **options)
    (tmp_path / "repo" / "inside" / "evil.py").write_text("")

    def fetch(name, allow_patterns, revision):
        assert (name, revision) == ("user/model", "v1")
        files = [p.relative_to(tmp_path / "repo") for p in (tmp_path / "repo").rglob("*.*")]
        for path in filter_repo_objects(map(str, files), allow_patterns=allow_patterns):
            (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / path).write_bytes((tmp_path / "repo" / path).read_bytes())
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    wishes = {"revision": "v1", "subfolder": "inside", "variant": variant}
    found = type(A).from_pretrained("user/model", **wishes).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in A.state_dict().items())
    names = {path.name for path in (tmp_path / "cache" / "inside").iterdir()}
    assert all("config" in name or ("fp16" in name) == (variant == "fp16") for name in names)
    assert "evil.py" not in names


# -- types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("given", ["float16", "torch.float16", torch.float16])
def test_a_type_may_be_named(folder, given, key):
    model = load_tokenizer(folder, **{key: given})
    assert model.dtype == torch.float16
    assert model.quantizer.codebook.dtype == torch.float32


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("given", ["half-float", "int8", torch.int8, 16, "torch", "save", ["x"]])
def test_a_type_that_is_none_is_refused(folder, given, key):
    message = refusal(folder, ConfigError, **{key: given})
    assert f"{key} {given!r} is none of float64, float32, float16, bfloat16, auto" in message


def test_options_are_refused_by_each_class_too(folder):
    with pytest.raises(ConfigError, match="channels cannot be set on a trained model"):
        type(A).from_pretrained(folder, channels=16)


@pytest.mark.parametrize("name", list_tokenizers())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_are_brought_to_the_type_of_the_weights(name, dtype, tmp_path):
    small_tokenizer(name).save_pretrained(tmp_path)
    model = load_tokenizer(tmp_path, torch_dtype=dtype)
    assert model.dtype == dtype
    indices = model.encode(IMAGES)
    images = model.decode(indices)
    assert torch.equal(model.encode(IMAGES.double()), indices)
    assert model.decode_latents(model.encode_latents(IMAGES).float()).shape == IMAGES.shape
    assert model(IMAGES).reconstruction.shape == IMAGES.shape
    assert to_pil(images[0]).size == (16, 16)
    save_grid(images, tmp_path / "grid.png")


@pytest.mark.parametrize("name", list_tokenizers())
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_have_no_tokens(name, value):
    model, images = small_tokenizer(name).eval(), IMAGES.clone()
    images[1, 0, 3, 3] = value
    with pytest.raises(InputError, match=r"image 1 of the batch \(1 of 2\) holds values"):
        model.encode(images)
    with pytest.raises(InputError, match="infinite or NaN"):
        model.decode_latents(torch.full((1, *model.latent_shape), value))


@pytest.mark.parametrize("name", list_tokenizers())
def test_an_overflow_inside_the_decoder_is_no_image(name):
    model = small_tokenizer(name).eval()
    indices = model.encode(IMAGES)
    with torch.no_grad():
        model.last_layer.fill_(float("inf"))
    with pytest.raises(InputError, match="decoded images are infinite or NaN"):
        model.decode(indices)


@pytest.mark.parametrize("name", list_tokenizers())
@pytest.mark.parametrize("halve", [lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
@pytest.mark.filterwarnings("ignore:There are modules")
def test_a_halved_model_keeps_its_codes_in_float32(name, halve):
    model = halve(small_tokenizer(name))
    codes = [v for v in model.quantizer.state_dict().values() if v.is_floating_point()]
    assert {v.dtype for v in codes} <= {torch.float32}
    assert model.dtype != torch.float32
    assert model.eval().decode(model.encode(IMAGES)).isfinite().all()
    output = model.train()(IMAGES)
    sum(output.losses.values()).backward()
    model.after_step()
    assert model.eval().encode(IMAGES).shape == output.indices.shape


def test_an_overflow_inside_the_network_has_no_tokens(tmp_path):
    model = make(0)
    model.encoder[-1].weight.data.mul_(1e4).clamp_(-6e4, 6e4)
    model.encoder[-1].bias.data.fill_(6.5e4)
    model.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode(IMAGES).shape[0] == 2
    with pytest.raises(InputError, match="overflows float16"):
        load_tokenizer(tmp_path, torch_dtype="float16").encode(IMAGES)
