from __future__ import annotations

import base64
import io
import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from spectok import load_tokenizer
from spectok.cli import main
from spectok.errors import ConfigError
from spectok_generation.demo.demo_recipe import load_plan
from spectok_generation.demo.installed import show_photographs
from spectok_generation.demo.judge import Closeness, Nearest, find_nearest, share_of_copies
from spectok_generation.demo.pictures import plot_lines, png_uri
from spectok_generation.demo.pipeline import MARKER, prepare_folder
from spectok_generation.demo.report import next_commands
from spectok_generation.demo.stages import Stages

TRAIN = {"steps": 4, "batch_size": 8, "log_every": 2, "sample_every": None}
DATA = {"name": "digits", "limit": 60}
FIRST = {
    "name": "qgvae",
    "num_tokens": 4,
    "codebook_size": 16,
    "codebook_dim": 8,
    "num_heads": 2,
    "max_channels": 8,
    "factor_levels": 1,
    "prefix_probability": 0.5,
}
SECOND = {
    "name": "vqvae",
    "downsample_factor": 8,
    "codebook_size": 16,
    "codebook_dim": 8,
    "channels": 8,
}


def write(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Return the folder of a demo that takes seconds."""
    folder = tmp_path_factory.mktemp("recipes")
    tokenizers = {
        label: write(folder / f"{label}.yaml", {"tokenizer": options, "data": DATA, "train": TRAIN})
        for label, options in {"first": FIRST, "second": SECOND}.items()
    }
    prior = {"prior": {"name": "gpt", "size": "gpt-nano"}, "train": TRAIN}
    write(
        folder / "demo.yaml",
        {
            "tokenizers": tokenizers,
            "prior": write(folder / "gpt.yaml", prior),
            "samples": {"per_class": 3, "temperature": 0.9},
            "classifier": {"steps": 4},
            "installed": ["vqvae/cifar10", "nobody/has-it", "qgvae/cifar10"],
            "expected_seconds": {
                "first": 2,
                "second": 1,
                "prior": 1,
                "classifier": 1,
                "samples": 1,
            },
        },
    )
    return folder


@pytest.fixture(scope="module")
def demo(recipes, tmp_path_factory):
    """Run that demo through the command line; return its folder."""
    out = tmp_path_factory.mktemp("out") / "demo"
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--out", str(out), "--recipe", str(recipes / "demo.yaml"), "--debug"])
    assert exit_.value.code == 0
    return out


# -- the whole, once ------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(demo):
    page = (demo / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "url(http" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_every_part(demo):
    page = (demo / "report.html").read_text(encoding="utf-8")
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Into tokens and back",
        "Token by token",
        "Side by side",
        "New images",
        "Are they copies?",
        "Trained for longer",
        "Codebooks",
        "Training",
        "Time",
        "Next steps",
    ]
    assert page.count("<svg") == 1 + 1 + 3
    for k in (0, 1, 2, 4):
        assert f"{k} token" in page


def test_metrics_are_there_and_possible(demo):
    metrics = json.loads((demo / "metrics.json").read_text())
    for label in ("first", "second"):
        assert metrics[label]["bits_per_image"] == 16
        assert metrics[label]["num_images"] == 60
        assert metrics[label]["steps"] == 4
        assert 0 < metrics[label]["psnr"] < 30
        assert -1 <= metrics[label]["ssim"] <= 1
    assert list(metrics["first"]["psnr_by_num_tokens"]) == ["0", "1", "2", "4"]
    assert list(metrics["second"]["psnr_by_num_tokens"]) == ["4"]
    last = metrics["first"]["psnr_by_num_tokens"]["4"]
    assert last == pytest.approx(metrics["first"]["psnr"], abs=1e-3)
    samples = metrics["samples"]
    assert samples["count"] == 30
    assert 0 <= samples["class_accuracy"] <= 1
    assert 0 <= samples["classifier_accuracy"] <= 1
    assert samples["nearest_train_distance"] > 0
    assert samples["held_out_nearest_train_distance"] > 0
    assert metrics["seconds"] > sum(metrics["stages"].values())
    assert metrics["peak_memory_bytes"] > 1e8
    assert list(metrics["installed"]) == ["vqvae/cifar10", "qgvae/cifar10"]
    whole, tiles = metrics["installed"].values()
    assert (whole["tiles"], tiles["tiles"]) == (1, 36)
    for found in (whole, tiles):
        assert found["bits_per_pixel"] == 576 / 32**2
        assert 25 < found["psnr"] < 30


def test_photographs_are_shown_where_a_model_is_installed(demo):
    assert show_photographs(["nobody/has-it"]) is None
    with Image.open(demo / "photographs.png") as picture:
        assert picture.size == (5 * 192 + 4 * 2, 3 * 192 + 2 * 2)


def test_the_models_work_for_other_commands(demo, recipes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = load_plan(recipes / "demo.yaml")
    for _, command in next_commands(plan, demo)[:4]:
        with pytest.raises(SystemExit) as exit_:
            main([*command[1:], "--debug"])
        assert exit_.value.code == 0, command
    assert {path.name for path in tmp_path.iterdir()} == {
        "more.png",
        "threes.png",
        "grid.png",
        "tokens.npz",
    }


def test_the_saved_tokenizer_has_the_reported_number(demo):
    metrics = json.loads((demo / "metrics.json").read_text())
    tokenizer = load_tokenizer(demo / "models" / "second" / "model")
    assert tokenizer.token_spec.bits_per_image == metrics["second"]["bits_per_image"]
    assert sum(p.numel() for p in tokenizer.parameters()) == metrics["second"]["parameters"]


def test_a_demo_is_replaced_and_nothing_else(demo, recipes, tmp_path):
    plan = load_plan(recipes / "demo.yaml")
    precious = tmp_path / "letters.txt"
    precious.write_text("keep me")
    with pytest.raises(ConfigError, match="is not a demo"):
        prepare_folder(plan, tmp_path)
    with pytest.raises(ConfigError, match="is not a demo"):
        prepare_folder(plan, precious)
    assert precious.read_text() == "keep me"
    earlier = tmp_path / "demo"
    shutil.copytree(demo, earlier)
    (earlier / "my-notes.txt").write_text("keep me too")
    prepare_folder(plan, earlier)
    assert {path.name for path in earlier.iterdir()} == {MARKER, "my-notes.txt"}


# -- a fair comparison ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "change", "what"),
    [
        ("tokenizer", {"codebook_size": 32}, r"bits per image differ \(first 16, second 20\)"),
        ("train", {"steps": 5}, r"steps differ \(first 4, second 5\)"),
        ("train", {"batch_size": 16}, r"images per step differ \(first 8, second 16\)"),
        ("data", {"limit": 61}, "images differ"),
    ],
)
def test_unequal_terms_are_refused(recipes, tmp_path, section, change, what):
    other = yaml.safe_load((recipes / "second.yaml").read_text())
    other[section] = other[section] | change
    demo = yaml.safe_load((recipes / "demo.yaml").read_text())
    demo["tokenizers"]["second"] = write(tmp_path / "other.yaml", other)
    with pytest.raises(ConfigError, match=what):
        load_plan(write(tmp_path / "demo.yaml", demo))


def test_names_and_classes_are_checked(recipes, tmp_path):
    demo = yaml.safe_load((recipes / "demo.yaml").read_text())
    renamed = demo | {"tokenizers": {"samples": demo["tokenizers"]["first"]}}
    with pytest.raises(ConfigError, match=r"the demo has its own 'samples'"):
        load_plan(write(tmp_path / "renamed.yaml", renamed))
    prior = yaml.safe_load((recipes / "gpt.yaml").read_text()) | {"class_conditional": False}
    classless = demo | {"prior": write(tmp_path / "prior.yaml", prior)}
    with pytest.raises(ConfigError, match="needs classes"):
        load_plan(write(tmp_path / "classless.yaml", classless))
    with pytest.raises(ConfigError, match=r"did you mean 'samples'"):
        load_plan(write(tmp_path / "misspelt.yaml", demo | {"smaples": {}}))


def test_the_shipped_demo_compares_on_equal_terms():
    plan = load_plan()
    assert plan.main == "qgvae"
    assert list(plan.tokenizers) == ["qgvae", "vqvae"]
    counts = []
    for recipe in plan.tokenizers.values():
        options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
        tokenizer = load_tokenizer(recipe.tokenizer["name"], **options)
        assert tokenizer.token_spec.bits_per_image == 96
        counts.append(sum(p.numel() for p in tokenizer.parameters()))
    assert max(counts) < 1.25 * min(counts)


# -- the parts ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked_shapes")
def test_the_nearest_image_is_found_where_it_was_moved_to():
    training = torch.rand(6, 1, 8, 8) * 2 - 1
    moved = torch.nn.functional.pad(training[[4, 2]], (1, 0, 0, 0), mode="replicate")[..., :8]
    found = find_nearest(moved, training, max_shift=1)
    assert found.index.tolist() == [4, 2]
    assert found.distance.max() < 1e-3
    assert find_nearest(moved, training).distance.min() > 0.05


def test_distances_are_root_mean_squares_of_unit_pixels():
    black, white = -torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert find_nearest(black, white).distance.item() == pytest.approx(1.0)
    assert find_nearest(black, torch.cat([white, black])).index.tolist() == [1]


def test_copies_are_told_from_new_images():
    def nearest(*distances):
        return Nearest(torch.tensor(distances), torch.zeros(len(distances)).long())

    found = Closeness(nearest(0.01, 0.2, 0.3, 0.4), nearest(0.1, 0.3), nearest(0.02)).summarize()
    assert found["closer_than_any_held_out"] == 0.25
    assert found["nearest_train_distance"] == pytest.approx(0.2275)
    rows, others = torch.tensor([[1, 2], [3, 4], [2, 1]]), torch.tensor([[3, 4], [5, 6]])
    assert share_of_copies(rows, others) == pytest.approx(1 / 3)


def test_a_grid_has_transparent_gaps():
    uri = png_uri(torch.full((3, 1, 4, 4), -1.0), columns=2)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (picture.mode, picture.size) == ("RGBA", (10, 10))
    assert picture.getpixel((0, 0)) == (0, 0, 0, 255)
    assert picture.getpixel((4, 0))[3] == 0
    assert picture.getpixel((9, 9))[3] == 0  # the place of the fourth image


def test_a_plot_takes_the_colour_of_the_page():
    svg = plot_lines({"a": ([1, 2], [3, 4]), "_b": ([1, 2], [3, 3])}, "steps", "loss")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert ">steps<" in svg
    assert ">_b<" not in svg


def test_the_time_left_follows_the_pace(capsys):
    stages = Stages()
    stages.plan(["a", "b"], {"a": 100, "b": 300})
    with stages.stage("a", "first"):
        pass
    stages.timings["a"] = 200.0  # twice as slow as expected
    with stages.stage("b", "second"):
        pass
    lines = capsys.readouterr().out.split("\n")
    assert "[1/2] first · about 7 min left in all" in lines
    assert "[2/2] second · about 10 min left in all" in lines


# -- the real one ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_demo_keeps_its_promises(tmp_path):
    """Five minutes on two idle cores."""
    command = [sys.executable, "-m", "spectok", "demo", "--out", str(tmp_path / "demo")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, check=True)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    work = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert work < 600, "seconds of one processor, whatever else runs"
    assert metrics["peak_memory_bytes"] < 3 * 2**30
    assert metrics["qgvae"]["psnr"] >= 24.5
    for name in ("bits_per_image", "steps", "batch_size"):
        assert metrics["qgvae"][name] == metrics["vqvae"][name]
    samples = metrics["samples"]
    assert samples["count"] == 1000
    assert samples["class_accuracy"] >= 0.9
    assert samples["classifier_accuracy"] >= 0.97
    assert samples["token_copies"] < 0.01
    assert samples["nearest_train_distance"] > 1.5 * samples["copies_nearest_train_distance"]
