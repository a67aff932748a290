"""What the programs of benchmarks share: refusals in one line."""

import argparse
import importlib
import json
from pathlib import Path

import pytest
import torch

import spectok
from spectok.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = sorted(
    path.name for path in BENCHMARKS.glob("*.py") if '"__main__"' in path.read_text("utf-8")
)


@pytest.fixture
def one_line(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("one_line")


@pytest.mark.parametrize("error", [ConfigError("a", "b"), OSError("a; b")])
def test_a_refusal_is_one_line(one_line, error):
    def main():
        raise error

    with pytest.raises(SystemExit, match=r"^error: a; b$"):
        one_line.run_program(main)


def test_an_error_of_our_own_keeps_its_traceback(one_line):
    with pytest.raises(ZeroDivisionError):
        one_line.run_program(lambda: 1 / 0)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_numbers_from_one_on(one_line, text):
    assert one_line.positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError):
        one_line.positive(text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_refuses_in_one_line(name):
    assert (BENCHMARKS / name).read_text("utf-8").endswith("\n    run_program(main)\n")


CURVES = sorted(
    path.name
    for path in (BENCHMARKS / "results" / "curves").glob("*_*.json")
    if not path.stem.endswith(("rates", "cost"))
)


@pytest.fixture
def curves(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("curves")


def recipe_of_command(curves, name, command):
    data_set, key = name.removesuffix(".json").split("_", 1)
    words = command.split()
    further = words[words.index("--settings") + 1 :] if "--settings" in words else []
    settings = curves.long_settings(data_set, words[words.index("--rate") + 1], further)
    return curves.make_recipe(data_set, key, "DIR", settings)


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_measured_again_by_its_command_and_by_no_other(curves, name):
    path = BENCHMARKS / "results" / "curves" / name
    command = json.loads(path.read_text())["command"]
    curves.refuse_others(path, recipe_of_command(curves, name, command))
    for setting, value in {"max_grad_norm": 0.5, "steps": 10, "batch_size": 16}.items():
        other = recipe_of_command(curves, name, command)
        setattr(other.train, setting, value)
        with pytest.raises(ConfigError, match=rf"^train\.{setting}: .* move it away$"):
            curves.refuse_others(path, other)


def test_checkerboards_are_told_from_noise_and_from_smooth_maps(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = importlib.import_module("favae_checkerboards")
    torch.manual_seed(0)
    noise = torch.randn(64, 2, 32, 32)
    rows = torch.arange(32)
    board = 1 - 2 * ((rows[:, None] + rows) % 2)
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3)
    peaks = [
        program.peak(program.energy(maps).sum(0))
        for maps in (noise, smooth + 0.05 * noise, smooth * (1 + 0.2 * board) + 0.05 * noise)
    ]
    assert peaks[0] == pytest.approx(1, abs=0.1)
    assert peaks[1] < 1.2 < 1.5 < peaks[2]


def test_an_edit_is_one_square_of_another_image(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = importlib.import_module("edited_tokens")
    images = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 3, 12, 16)
    differs = program.edit(images, 5) != images
    assert differs.sum((1, 2, 3)).tolist() == [3 * 25] * 7
    assert differs[:, 0].any(2).sum(1).tolist() == [5] * 7


def test_numbers_of_another_command_are_kept(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    check_free = importlib.import_module("kept").check_free
    path = tmp_path / "found.json"
    check_free(path, "python a.py --data DIR")
    path.write_text('{"command": "python a.py --data DIR"}')
    check_free(path, "python a.py --data DIR")
    with pytest.raises(ConfigError, match=r"a\.py --data DIR'; give another file with --result"):
        check_free(path, "python a.py --data DIR --images 2")
    with pytest.raises(ConfigError, match="is no folder"):
        check_free(tmp_path / "none" / "found.json", "python a.py")


def test_models_that_are_compared_take_the_same_images_and_are_named_once(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    load_alike = importlib.import_module("alike").load_alike
    assert list(load_alike(["vqvae/mnist", "qgvae/mnist"])) == ["vqvae/mnist", "qgvae/mnist"]
    with pytest.raises(ConfigError, match="vqvae/mnist is given twice"):
        load_alike(["vqvae/mnist", "qgvae/mnist", "vqvae/mnist"])
    with pytest.raises(ConfigError, match="vqvae/cifar10 takes other images than vqvae/mnist"):
        load_alike(["vqvae/mnist", "vqvae/cifar10"])


def test_checkerboards_call_runs_of_ablations_like_their_variants(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = importlib.import_module("favae_checkerboards")
    model = spectok.load_tokenizer("favae", image_size=16, channels=8, num_blocks=1)
    folders = [tmp_path / name / "seed-0-rate-0.003" for name in ("SL", "DSL")]
    for folder in (*folders, tmp_path / "other" / "SL"):
        model.save_pretrained(folder / "model")
    assert list(program.open_models(folders)) == ["SL", "DSL"]
    with pytest.raises(ConfigError, match="SL is given twice"):
        program.open_models([*folders, tmp_path / "other" / "SL"])
