"""The trained models that are installed with spectok: each loads, and its numbers hold.

What they make of built-in photographs is recorded, which needs no data set; record it again with

    python tests/core/test_models_in_the_box.py

Their claims are measured again where SPECTOK_TEST_DATA names a folder with their data sets.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

import spectok
from spectok import list_models, load_tokenizer
from spectok.cards.summary import summarize
from spectok.data import DataConfig, build_dataset
from spectok.data.shapes import COMBINATIONS, caption
from spectok.evaluation.shapes import read_shapes
from spectok.evaluation.verifying import claims_of_folder, find_claims, reference_data, verify
from spectok.loading import load_trained
from spectok.metrics import psnr
from spectok.modeling import model_fingerprint
from spectok.plugins import registry
from spectok_generation import TokenPipeline
from spectok_generation.verifying import verify_likelihood

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models.json"
CURVES = ROOT / "benchmarks" / "results" / "curves"
OURS = [n for n in list_models() if registry.provider("model", n).startswith("spectok ")]
TOKENIZERS = [n for n in OURS if registry.get_registered("model", n).kind == "tokenizer"]
PRIORS = [name for name in OURS if name not in TOKENIZERS]
BUILT_IN = ("shapes", "digits", "photos")
LARGEST, LARGEST_OF_ALL = 3_000_000, 20_000_000
IMAGES, FEW = 4, 300


def folder_of(name):
    return registry.get_registered("model", name).folder


def on_photographs(name):
    """Return the tokens of built-in images and how close the reconstructions are, in dB."""
    tokenizer = load_tokenizer(name)
    channels, size = tokenizer.image_shape[:2]
    data = DataConfig(name="photos", image_size=size, channels=channels, split="test")
    dataset = build_dataset(data, train=False)
    images = torch.stack([dataset[i]["images"] for i in range(IMAGES)])
    with torch.no_grad():
        indices = tokenizer.encode(images)
        found = psnr(images, tokenizer.decode(indices))
    return {"indices": indices.tolist(), "psnr": [round(value, 4) for value in found.tolist()]}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_built_in_images_give_the_recorded_tokens(name):
    found, recorded = on_photographs(name), json.loads(GOLDEN.read_text())[name]
    ours, theirs = (torch.tensor(one["indices"]) for one in (found, recorded))
    assert ours.shape == theirs.shape
    assert (ours != theirs).float().mean() <= 0.005  # another processor may decide near-ties so
    assert found["psnr"] == pytest.approx(recorded["psnr"], abs=0.05)


@pytest.mark.parametrize("name", OURS)
def test_it_has_a_card_and_names_no_place(name):
    folder = folder_of(name)
    facts = summarize(folder)
    assert facts["license"], name
    assert facts["data"], name
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".md"):
            assert not re.search(r"[\s\"'(](/[a-z]\w*){2}", path.read_text()), path
    assert facts["bytes"] <= LARGEST


def test_all_of_them_are_small():
    assert sum(summarize(folder_of(name))["bytes"] for name in OURS) <= LARGEST_OF_ALL


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_card_is_about_these_weights_and_agrees_with_the_result_of_the_run(name):
    claimed = find_claims(folder_of(name))
    assert claimed.contradictions == []
    assert {claim.weights for claim in claimed.claims} == {model_fingerprint(load_trained(name))}
    assert min(claim.protocol["num_images"] for claim in claimed.claims) == FEW
    key, data = name.split("/")
    result = CURVES / f"{data}_{key}.json"
    if not result.is_file():
        pytest.skip("no result of a long run in this installation")
    content = json.loads(result.read_text())
    assert content["trained_model"] == name
    whole = max(claimed.claims, key=lambda claim: claim.protocol["num_images"])
    assert whole.protocol["id"] == content["measured"][0]["protocol"]["id"]
    for exact in ("bits_per_image", "parameters"):
        assert whole.values[exact] == content["final"][exact], exact
    for name, tolerance in (("psnr", 0.005), ("perplexity", 0.5), ("codebook_usage", 0.002)):
        close = pytest.approx(content["final"][name], abs=tolerance)  # weights were rounded
        assert whole.values[name] == close, name


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_claim_is_measured_again(name):
    claimed = find_claims(folder_of(name))
    claim = min(claimed.claims, key=lambda claim: claim.protocol["num_images"])
    data = Path(os.environ.get("SPECTOK_TEST_DATA") or "nowhere", claim.data["name"])
    if not data.is_dir():
        pytest.skip(f"SPECTOK_TEST_DATA names no directory with {claim.data['name']}")
    images = reference_data(claim, claimed.model, str(data))
    checks = verify(claim, load_trained(name), images)
    assert [check.name for check in checks if not check.passed] == []


@pytest.mark.parametrize("name", PRIORS)
def test_the_likelihood_that_a_card_claims_is_measured_again(name):
    claimed = claims_of_folder(folder_of(name))
    assert claimed.contradictions == []
    claim = min(claimed.claims, key=lambda claim: claim.protocol["num_images"])
    assert claim.protocol["num_images"] == FEW
    pipeline, path = TokenPipeline.from_run(name), None
    if claim.data["name"] not in BUILT_IN:
        path = Path(os.environ.get("SPECTOK_TEST_DATA") or "nowhere", claim.data["name"])
        if not path.is_dir():
            pytest.skip(f"SPECTOK_TEST_DATA names no directory with {claim.data['name']}")
    checks = verify_likelihood(
        claim,
        pipeline.prior,
        pipeline.tokenizer,
        reference_data(claim, claimed.model, path and str(path)),
        encoder=pipeline.text_encoder,
    )
    assert [check.name for check in checks if not check.passed] == []


@pytest.mark.skipif("cat/shapes" not in OURS, reason="cat/shapes is not installed")
def test_the_pipeline_draws_what_it_is_asked_for():
    asked = [caption(label) for label in range(len(COMBINATIONS))][::2]
    drawn = TokenPipeline.from_run("cat/shapes")(
        asked, guidance=1.0, seed=0, output_type="np"
    ).images
    found = [reading.caption for reading in read_shapes((drawn * 255).round().astype("uint8"))]
    assert sum(a == b for a, b in zip(asked, found)) >= 0.75 * len(asked)


def main():
    """Record what each of our tokenizers makes of built-in images."""
    found = {name: on_photographs(name) for name in TOKENIZERS}
    GOLDEN.write_text(json.dumps(found) + "\n")
    print(f"{', '.join(found)}: {GOLDEN.relative_to(Path(spectok.__file__).parents[2])}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
