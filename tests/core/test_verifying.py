"""Numbers that are measured again: what holds passes, what was changed does not."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from spectok.cards import CARD, read_claims, record_claim
from spectok.cards.claims import Claim
from spectok.data import DataConfig, build_dataset
from spectok.data.digits import Digits
from spectok.data.preprocessing import Preprocessing
from spectok.errors import CheckpointError, DataError
from spectok.evaluation import Evaluation, evaluate
from spectok.evaluation.verifying import (
    Check,
    find_claims,
    reference_data,
    tolerance_of,
    verify,
)
from spectok.loading import load_trained
from spectok.plugins import registry
from spectok.training.card import describe_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Train a tiny tokenizer, and write numbers into its card as the command line does."""
    from spectok.cli import main

    folder = tmp_path_factory.mktemp("measured")
    words = ["train", "smoke/vqvae", "train.steps=2", "train.sample_every=null", "data.limit=32"]
    commands = [
        [*words, "--output", str(folder / "run")],
        ["eval", str(folder / "run"), "--limit", "20", "--card", "--out", str(folder / "r.json")],
    ]
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
    return folder


@pytest.fixture
def copied(measured, tmp_path):
    """Return a copy of it, to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(measured, folder)
    return folder


def failed(out):
    return [line.split()[0] for line in out.splitlines() if line.endswith("DIFFERS")]


def test_what_was_measured_passes_from_every_place(run, measured):
    for given in ("run", "run/model", f"run/model/{CARD}", "r.json"):
        status, out, _ = run("eval", measured / given, "--verify")
        assert status == 0, out
        assert failed(out) == []
        assert "20 images of digits/test, resize shorter 16, center crop 16 (bicubic" in out
        assert out.splitlines()[-1].startswith("pass: ")


def test_a_result_names_its_model_data_and_command(measured):
    result = json.loads((measured / "r.json").read_text())
    (claim,), _ = read_claims(measured / "run" / "model" / CARD)
    assert claim == Claim.from_result(result, result["weights"], result["data"])
    assert result["command"].startswith("spectok ")
    assert claim.data == {
        "name": "digits", "split": "test", "image_size": 16, "channels": 1, "limit": 20,
    }  # fmt: skip


def test_one_weight_fails(run, copied):
    path = copied / "run" / "model" / WEIGHTS
    state = load_file(path)
    name = next(name for name in state if "decoder" in name)
    state[name].view(-1)[0] += 1e-7
    save_file(state, path)
    status, out, _ = run("eval", copied / "run", "--verify", "--out", "v.json")
    assert (status, failed(out)) == (1, ["weights"])
    assert out.splitlines()[-1] == f"fail: {copied}/run/model/{CARD} does not hold: weights"
    record = json.loads(Path("v.json").read_text())
    assert (record["passed"], record["failed"]) == (False, ["weights"])


def test_one_number_fails(run, copied):
    path = copied / "run" / "model" / CARD
    (claim,), _ = read_claims(path)
    better = replace(claim, values=claim.values | {"psnr": claim.values["psnr"] + 0.02})
    record_claim(path.parent, better, describe_tokenizer(load_trained(path.parent), path.parent))
    status, out, _ = run("eval", path, "--verify")
    assert (status, failed(out)) == (1, ["psnr"])
    assert "-0.02 " in out


def test_one_number_of_the_list_or_the_table_fails(run, copied):
    path = copied / "run" / "model" / CARD
    path.write_text(path.read_text().replace("| images | 20 |", "| images | 300 |"))
    status, out, _ = run("eval", path, "--verify")
    assert status == 1
    assert "the table of numbers in the text is not that of the claims" in out.splitlines()[-1]


def test_another_resize_filter_fails(run, measured, monkeypatch):
    def nearest(self, config):
        return Preprocessing.resize_and_crop(16, 1, "nearest")

    monkeypatch.setattr(Digits, "preprocessing", nearest)
    status, out, _ = run("eval", measured / "run", "--verify")
    assert status == 1
    assert {"protocol", "protocol:", "reference_images", "psnr"} <= set(failed(out))


# -- images of one's own ---------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures" / "test"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 256, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "pictures" / "train").mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "train" / "0.png")
    return folder.parent


def test_one_pixel_of_one_image_fails(run, copied, pictures):
    card = copied / "run" / "model" / CARD
    card.unlink()
    assert run("eval", copied / "run", "--data", pictures, "--card")[0] == 0
    assert str(pictures) not in card.read_text()
    given = ("eval", copied / "run", "--verify", "--data", pictures)
    assert run(*given)[0] == 0
    image = pictures / "test" / "3.png"
    pixels = np.array(Image.open(image))
    pixels[10, 10] ^= 128
    Image.fromarray(pixels).save(image)
    status, out, _ = run(*given)
    assert status == 1
    assert failed(out)[:3] == ["protocol", "protocol:", "reference_images"]


def test_a_large_set_is_known_by_its_pixels_too(measured, pictures):
    """Names, sizes and some bytes, which the fingerprint of a large set knows, are not enough."""
    tokenizer = load_trained(measured / "run")
    (claim,), _ = read_claims(measured / "run" / "model" / CARD)
    ours = replace(claim, data={"name": "folder", "split": "test", "image_size": 16, "channels": 1})

    def pixel_hash():
        data = reference_data(ours, measured, str(pictures))
        return evaluate(tokenizer, data)["reference_images"]

    before = pixel_hash()
    assert pixel_hash() == before
    image = pictures / "test" / "0.png"
    pixels = np.array(Image.open(image))
    pixels[10, 10] ^= 128
    Image.fromarray(pixels).save(image)
    assert pixel_hash() != before


def test_images_that_are_not_here_are_one_line(refused, copied, pictures, tmp_path):
    path = copied / "run" / "model" / CARD
    (claim,), _ = read_claims(path)
    for name, there in [("cifar10", None), ("folder", None), ("folder", tmp_path / "gone")]:
        ours = replace(claim, data=claim.data | {"name": name})
        why = "hand; give them with --data" if there is None else f"{there}: {there} does not exist"
        with pytest.raises(DataError, match=re.escape(f"images {name}/test are not at {why}")):
            reference_data(ours, path.parent, there and str(there))
    card = path.read_text().replace("name: digits", "name: cifar10")
    path.write_text(card)
    assert "reference images cifar10/test are not at hand" in refused("eval", path, "--verify")


# -- what cannot be verified -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["metrics", "psnr"], "40.0", "claims 'psnr' '40.0', no number"),
        (["metrics", "psnr"], float("nan"), "claims 'psnr' nan, no number"),
        (["metrics", "psnr"], None, "claims 'psnr' None, no number"),
        (["metrics", "psnr"], True, "claims 'psnr' True, no number"),
        (["metrics"], {}, "claims no number"),
        (["bits_per_image"], "1", "claims 'bits_per_image' '1', no number"),
        (["levels", 0, "perplexity"], "9", "claims 'levels.0.perplexity' '9', no number"),
        (["levels", 0, "positions", "perplexity", 3], None, "claims 'levels.0.positions.perp"),
    ],
)
def test_a_result_whose_numbers_are_none_is_refused(refused, copied, path, value, told):
    plant(copied / "r.json", path, value)
    assert told in refused("eval", copied / "r.json", "--verify")


@pytest.mark.parametrize(
    "path",
    [
        ["metrics", "psnr"],
        ["levels", 0, "perplexity"],
        ["levels", 0, "positions", "perplexity", 3],
        ["distinct_usage"],
    ],
)
def test_an_edited_number_of_a_result_fails_by_its_name(run, copied, path):
    plant(copied / "r.json", path, 400.0)
    status, out, _ = run("eval", copied / "r.json", "--verify")
    assert status == 1
    name = ".".join(map(str, path)).removeprefix("metrics.")
    assert out.endswith(f"r.json does not hold: {name}\n")


def test_a_result_that_denies_a_number_which_is_there_fails(run, copied):
    plant(copied / "r.json", ["distinct_usage"], None)
    assert run("eval", copied / "r.json", "--verify")[0] == 1


def plant(path, keys, value):
    """Change one value in a JSON file."""
    content = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    assert place[keys[-1]] != value
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_what_claims_nothing_is_one_line(refused, copied, tmp_path):
    model = copied / "run" / "model"
    (model / CARD).unlink()
    assert f"{model} has no {CARD}; 'spectok eval {model} --card'" in refused(
        "eval", model, "--verify"
    )
    assert "no folder of a model, no card and no JSON" in refused("eval", "nothing", "--verify")
    for option, value in (("--limit", "3"), ("--split", "train")):
        assert "leave out --split" in refused("eval", model, "--verify", option, value)
    assert "--card writes into the folder" in refused("eval", "user/model", "--card")
    for content, message in [
        ([], "holds no JSON object"),
        ({}, "names no model"),
        ({"model": "gone", "measured": []}, "claims no numbers"),
        ({"model": "gone", "metrics": {}, "weights": "a"}, "has no data that a claim needs"),
        ({"model": str(model)}, "has neither 'measured' nor 'metrics'"),
    ]:
        path = tmp_path / "r.json"
        path.write_text(json.dumps(content))
        assert message in refused("eval", path, "--verify")
    (claim,) = find_claims(copied / "r.json").claims
    path.write_text(json.dumps({"model": "gone", "measured": [claim.to_dict()]}))
    assert "is about the model gone, which is not here" in refused("eval", path, "--verify")


def test_a_number_of_a_network_that_is_not_here_is_one_line(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (claim,), _ = read_claims(measured / "run" / "model" / CARD)
    protocol = claim.protocol | {"extractors": {"rfid": "inception abc"}}
    ours = replace(claim, protocol=protocol, values=claim.values | {"rfid": 3.0})
    with pytest.raises(CheckpointError, match="rfid is claimed, and needs pt_inception"):
        verify(ours, load_trained(measured / "run"), reference_data(ours, measured / "run"))


def test_a_network_that_was_not_there_then_changes_nothing(measured, monkeypatch):
    """More can be measured here than was claimed: the protocol is that of the claim."""
    from spectok.evaluation import verifying

    (claim,), _ = read_claims(measured / "run" / "model" / CARD)
    tokenizer, data = load_trained(measured / "run"), reference_data(claim, measured / "run")
    result = evaluate(tokenizer, data)
    result["protocol"] |= {"id": "other", "extractors": {"lpips": "lpips alex abc"}}
    monkeypatch.setattr(verifying, "evaluate", lambda *_: result)
    assert all(check.passed for check in verify(claim, tokenizer, data))


def test_tolerances():
    assert Check("psnr", 20.0, 20.009, tolerance_of("psnr", 20.0)).passed
    assert not Check("psnr", 20.0, 20.011, tolerance_of("psnr", 20.0)).passed
    assert not Check("psnr", 20.0, None, tolerance_of("psnr", 20.0)).passed
    assert tolerance_of("num_images", 20) is None
    assert tolerance_of("mse", 0.01) == pytest.approx(5e-5)
    assert tolerance_of("classifier_frechet", 3.0) == pytest.approx(0.06)


# -- the size and the resizing ---------------------------------------------------------------------


def test_sizes_and_filters_have_protocols_of_their_own(monkeypatch):
    """Numbers at another image size, or after another resize, are never compared."""
    from spectok import load_tokenizer
    from spectok.errors import InputError
    from spectok.evaluation import compare_results

    def measure(size):
        tokenizer = load_tokenizer("vqvae", image_size=size, in_channels=1, channels=8)
        config = DataConfig(name="digits", split="test", limit=4, image_size=size, channels=1)
        return evaluate(tokenizer.eval(), build_dataset(config, train=False))

    small, large = measure(8), measure(32)
    steps = small["protocol"]["preprocessing"]["steps"]
    assert steps == [["resize_shorter", 8], ["center_crop", 8]]
    with pytest.raises(InputError, match=r"preprocessing .*_shorter', 8.*_shorter', 32"):
        compare_results({"small": small, "large": large})
    source = registry.get_dataset("digits")
    monkeypatch.setattr(
        type(source),
        "preprocessing",
        lambda self, config: Preprocessing.resize_and_crop(config.image_size, 1, "lanczos"),
    )
    with pytest.raises(InputError, match=r"'bicubic'.*'lanczos'"):
        compare_results({"bicubic": small, "lanczos": measure(8)})


# -- batches and processes -------------------------------------------------------------------------


def write_numbers(folder, data_limit, batch_size, out):
    """Measure and write what must not depend on how it was measured."""
    torch.set_num_threads(1)
    config = DataConfig(name="digits", split="test", limit=data_limit, image_size=16, channels=1)
    how = Evaluation(batch_size)
    result = evaluate(load_trained(folder), build_dataset(config, train=False), how)
    kept = {name: result[name] for name in ("metrics", "levels", "protocol", "reference_images")}
    (out / f"{os.environ.get('RANK', 'alone')}-{batch_size}.json").write_text(json.dumps(kept))


def test_numbers_are_those_of_any_batch_size_and_number_of_processes(
    measured, tmp_path, fork_ranks
):
    for batch_size in (7, 64):
        write_numbers(measured / "run", 70, batch_size, tmp_path)
    assert fork_ranks(write_numbers, measured / "run", 70, 64, tmp_path) == [0, 0]
    names = ("alone-64", "alone-7", "0-64", "1-64")
    whole, parts, *ranks = (json.loads((tmp_path / f"{n}.json").read_text()) for n in names)
    assert ranks == [whole, whole]
    assert parts["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
    del parts["metrics"], whole["metrics"]
    assert parts == whole
