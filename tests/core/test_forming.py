"""``benchmarks/forming.py``: what forms in training, in pictures and by frequency."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from spectok.data import DataConfig
from spectok.errors import ConfigError
from spectok.training import TokenizerRecipe, TrainConfig, train_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def forming(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as a script finds what lies beside it
    return importlib.import_module("forming")


def wave(cycles, size=16):
    """Return an image that varies along its columns alone, of so many cycles per image."""
    return torch.cos(2 * math.pi * cycles * torch.arange(size) / size).expand(1, 1, size, size)


def test_energy_is_split_at_the_radial_frequency(forming):
    slow, fast = wave(2), wave(6).transpose(2, 3)
    found = forming.band_energies(slow + 0.5 * fast, 0.25)
    assert found["low"] == pytest.approx(slow.square().sum().item(), rel=1e-5)
    assert found["high"] == pytest.approx(0.25 * fast.square().sum().item(), rel=1e-5)
    assert forming.band_energies(wave(4), 0.25)["low"] == pytest.approx(0, abs=1e-8)
    diagonal = wave(3) * wave(3).transpose(2, 3)  # 0.19 along each axis, 0.27 in all
    assert forming.band_energies(diagonal, 0.25)["low"] == pytest.approx(0, abs=1e-8)
    noise = torch.randn(3, 2, 9, 12)
    assert sum(forming.band_energies(noise, 0.2).values()) == pytest.approx(
        noise.square().sum().item(), rel=1e-5
    )


def entry(step, low, high, psnr=20.0):
    return {"step": step, "psnr": psnr, "unexplained": {"low": low, "high": high}}


def test_a_band_forms_when_nine_tenths_of_what_is_explained_in_the_end_are(forming):
    numbers = [entry(1, 0.19, 1.2), entry(2, 0.11, 0.65), entry(3, 0.1, 0.6)]
    found = forming.summarise(numbers)
    assert found["forms_at"] == {"low": 1, "high": 3}
    assert found["checkpoints"][1]["formed"]["high"] == pytest.approx(0.35 / 0.4)
    assert found["checkpoints"][0]["formed"]["high"] < 0  # worse than the mean image
    never = forming.summarise([entry(1, 0.5, 1.0), entry(2, 0.4, 1.1)])
    assert never["forms_at"] == {"low": 2, "high": None}


def kept(forming, *levels):
    return [
        forming.Kept(entry(step, 0, 0, psnr), torch.zeros(0)) for step, psnr in enumerate(levels)
    ]


def test_rows_of_several_runs_are_at_one_psnr(forming):
    found = {"fast": kept(forming, 10, 19, 22, 30), "slow": kept(forming, 15, 16, 18, 20, 21)}
    chosen = forming.choose_rows(found, 3)
    levels = {name: [k.numbers["psnr"] for k in some] for name, some in chosen.items()}
    assert levels == {"fast": [19, 19, 22], "slow": [15, 18, 21]}
    one = forming.choose_rows({"fast": found["fast"]}, 2)["fast"]
    assert [k.numbers["step"] for k in one] == [0, 3]
    with pytest.raises(ConfigError, match="no PSNR in common"):
        forming.choose_rows({"a": kept(forming, 10, 11), "b": kept(forming, 20, 21)}, 2)


def run(forming, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["forming.py", *map(str, words)])
    forming.main()


def test_runs_become_a_picture_and_numbers(forming, tmp_path, monkeypatch, train, vqvae, qgvae):
    for name, options in (("grid", vqvae), ("whole", qgvae)):
        train(tmp_path / name, options, steps=12, save_every=4, keep_last=9)
    out = tmp_path / "forming.png"
    folders = [tmp_path / "grid", tmp_path / "whole"]
    run(forming, monkeypatch, *folders, "--out", out, "--images", 3, "--measured", 20)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["num_images"] == 20
    assert list(record["runs"]) == ["grid", "whole"]
    assert str(tmp_path) not in json.dumps(record)
    for found in record["runs"].values():
        assert [c["step"] for c in found["checkpoints"]] == [4, 8, 12]
        assert found["checkpoints"][-1]["formed"]["low"] in (1.0, None)
        assert found["checkpoints"][-1]["psnr"] > found["checkpoints"][0]["psnr"]
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100


def test_what_is_refused(forming, tmp_path, monkeypatch, train, vqvae):
    out = tmp_path / "forming.png"
    with pytest.raises(ConfigError, match="holds no run with checkpoints"):
        run(forming, monkeypatch, tmp_path, "--out", out)
    train(tmp_path / "a" / "run", vqvae, steps=1)
    train(tmp_path / "b" / "run", vqvae, steps=1)
    with pytest.raises(ConfigError, match="have one name"):
        run(forming, monkeypatch, tmp_path / "a" / "run", tmp_path / "b" / "run", "--out", out)
    data = DataConfig(name="digits", image_size=16, limit=20)
    larger = TokenizerRecipe(
        tokenizer=vqvae | {"image_size": 16}, data=data, train=TrainConfig(steps=1, batch_size=4)
    )
    train_tokenizer(larger, tmp_path / "larger")
    with pytest.raises(ConfigError, match="different held-out images"):
        run(forming, monkeypatch, tmp_path / "a" / "run", tmp_path / "larger", "--out", out)
    assert not out.exists()
