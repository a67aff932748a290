"""Every committed measurement says how it was made, and what can be measured again is claimed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spectok import list_models
from spectok.cards.claims import SCALARS, Claim
from spectok.evaluation.protocol import protocol_id

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.json"))
RECONSTRUCTION = {"psnr", "ssim", "mse", "lpips", "rfid"}
NOT_RECORDED = "not recorded"
BEFORE_PROTOCOLS = {
    "curves/cifar10_rates.json",
    "forming.json",
    "fqvae_cifar10.json",
    "fqvae_digits.json",
    "latent_diffusion.json",
    "mnist_priors_earlier.json",
}
"""Measured by programs that did not write a protocol yet; today's write one."""
OF_TIME = {  # or of training alone: no image is measured
    *("curves/cifar10_cost.json", "curves/mnist_cost.json", "curves/mnist_rates.json"),
    *("extractors.json", "loader.json", "masked_sampling.json", "precision.json"),
    *("qgvae_step.json", "sampling.json", "search.json", "start.json", "tree_search.json"),
    "waits.json",
}
CLAIMED = [name for name in FILES if "measured" in json.loads((RESULTS / name).read_text())]

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="needs a checkout")


def read(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def mappings(value):
    """Return all mappings inside, the whole one included."""
    if isinstance(value, dict):
        return [value, *(found for part in value.values() for found in mappings(part))]
    return [found for part in value for found in mappings(part)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", FILES)
def test_a_result_names_a_command_that_exists(name):
    command = read(name)["command"]
    words = command.split()
    if words[0] == "python":
        assert (ROOT / words[1]).is_file(), command
    else:
        assert words[0] == "spectok", command
    assert not re.search(r"[ =:]/\w", command), "a place of one machine; write DIR"


@pytest.mark.parametrize("name", FILES)
def test_numbers_of_reconstructions_have_a_protocol(name):
    content = read(name)
    if not any(RECONSTRUCTION & found.keys() for found in mappings(content)):
        return
    if content.get("protocol") == NOT_RECORDED:
        assert name in BEFORE_PROTOCOLS
        return
    protocols = [
        found["protocol"] for found in mappings(content) if isinstance(found.get("protocol"), dict)
    ]
    assert protocols, f"{name} has neither a protocol nor says that it was not recorded"
    for protocol in protocols:
        assert protocol["id"] == protocol_id(protocol)
        assert {"steps", "filter"} <= protocol["preprocessing"].keys()


@pytest.mark.parametrize("name", FILES)
def test_every_protocol_has_its_id_and_only_times_have_none(name):
    protocols = [
        found["protocol"]
        for found in mappings(read(name))
        if isinstance(found.get("protocol"), dict)
    ]
    assert protocols or name in OF_TIME | BEFORE_PROTOCOLS
    for protocol in protocols:
        assert protocol["id"] == protocol_id(protocol)


@pytest.mark.parametrize("name", CLAIMED)
def test_claims_are_the_numbers_of_the_result(name):
    content = read(name)
    whole, part = (Claim.from_dict(one, name) for one in content["measured"])
    assert whole.values == {key: content["final"][key] for key in whole.values}
    assert {"psnr", "ssim", "mse", "perplexity"} <= whole.values.keys()
    assert whole.protocol["num_images"] == content["final_images"]
    assert part.values == {key: content["curve"][-1][key] for key in part.values}
    assert part.protocol["num_images"] == content["curve_images"] == part.data["limit"]
    assert content["curve"][-1]["step"] == content["recipe"]["train"]["steps"]
    assert whole.values.keys() <= {"psnr", "ssim", "mse", *SCALARS}
    assert whole.weights == part.weights
    assert content["trained_model"] in list_models()  # whose card claims nearly the same numbers
