"""Committed numbers say by which command, and by which protocol, they are measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spectok.evaluation.protocol import protocol_id

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OF_TIME = [  # or of training alone: no image is measured
    *("curves/cifar10_cost", "curves/cifar10_rates", "curves/mnist_cost", "curves/mnist_rates"),
    *("extractors", "loader", "masked_sampling", "precision", "qgvae_step", "sampling", "search"),
    *("start", "tree_search", "waits"),
]

NOT_RECORDED = (
    "forming",
    "fqvae_cifar10",
    "fqvae_digits",
    "latent_diffusion",
    "mnist_priors_earlier",
)
"""Measured before there were protocols, and not since."""


def protocols(tree):
    if isinstance(tree, dict):
        if isinstance(tree.get("protocol"), dict):
            yield tree["protocol"]
        tree = list(tree.values())
    for part in tree if isinstance(tree, list) else []:
        yield from protocols(part)


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_a_result_has_its_command_and_a_protocol_whose_id_is_right(path):
    content = json.loads(path.read_text())
    assert content["command"].startswith(("python benchmarks/", "spectok "))
    found, name = list(protocols(content)), path.relative_to(RESULTS).with_suffix("").as_posix()
    assert found or name in OF_TIME or (name in NOT_RECORDED and "not recorded" in str(content))
    for protocol in found:
        assert protocol["id"] == protocol_id(protocol)
