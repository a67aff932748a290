"""Damaged input of every kind ends in one of our own errors, soon, and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
CASES = {
    "token_spec": 30_000,
    "token_file": 20_000,
    "token_cache": 10_000,
    "text_features": 5_000,
    "override": 10_000,
    "recipe": 6_000,
    "prior_recipe": 4_000,
    "image": 6_000,
    "archive": 3_000,
    "model_folder": 4_000,
    "pipeline": 2_000,
}
"""How many cases of each kind the whole run has: 100,000 in all."""
SAMPLE = 20  # cases of each kind in the default run


def run(targets, count, timeout):
    """Hand over cases 0, 1, … of each target; return the faults, and how many cases there were."""
    words = [sys.executable, str(WORKER), ",".join(targets), "0", str(count)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *faults, total = [json.loads(line) for line in done.stdout.splitlines()]
    return faults, total["cases"]


def test_a_sample_of_damaged_input_is_refused_in_one_line():
    faults, cases = run(CASES, SAMPLE, timeout=300)
    assert cases == SAMPLE * len(CASES)
    assert faults == []


def test_the_whole_run_has_100_000_cases():
    assert sum(CASES.values()) == 100_000


@pytest.mark.slow
@pytest.mark.parametrize("target", CASES)
def test_damaged_input_is_refused_in_one_line(target):
    faults, cases = run([target], CASES[target], timeout=7_200)
    assert cases == CASES[target]
    assert faults == []
