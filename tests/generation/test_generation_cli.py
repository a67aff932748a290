"""The commands of the generation layer, from a trained tokenizer to a picture."""

import dataclasses
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from spectok import load_tokenizer
from spectok.cli import build_app
from spectok.cli.scripts import command_words
from spectok.modeling import model_fingerprint
from spectok.testing.small import small_tokenizer
from spectok_generation import DiffusionOptions, MaskedOptions, SamplingOptions
from spectok_generation.pairs import load_pair

ROOT = Path(__file__).parents[2]
QUICK = ["train.steps=2", "train.batch_size=4", "train.sample_every=null", "prior.size=gpt-nano"]


@pytest.fixture
def trained(spectok, tokenizer_folder, tmp_path):
    """Return the folder of a prior that two steps were spent on."""
    folder = tmp_path / "prior"
    options = ["--tokenizer", tokenizer_folder, "--data", "digits", "--output", folder]
    assert spectok("train", "prior", "gpt", *QUICK, "data.limit=20", *options)[0] == 0
    return folder


def next_command(printed):
    line = next(line for line in printed.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    assert words.pop(0) == "spectok"
    return words


def test_each_command_names_the_next_and_it_works(spectok, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = spectok(
        "extract", tokenizer_folder, "limit=20", "--data", "digits", "--out", "t"
    )
    assert status == 0
    assert "20 images, 8 tokens each" in out
    status, out, _ = spectok(*next_command(out), *QUICK)
    assert status == 0
    status, out, _ = spectok(*next_command(out))
    assert status == 0
    with Image.open("samples.png") as picture:
        assert picture.width > 64
    first = Path("samples.png").read_bytes()
    status, out, _ = spectok(*next_command(out))
    assert status == 0
    assert Path("samples.png").read_bytes() == first  # the next seed goes into a picture of its own
    assert Path("samples-1.png").read_bytes() != first
    assert "--out samples-2.png" in out


@pytest.mark.slow
def test_a_tokenizer_inside_a_folder_is_recorded_and_found(spectok, tmp_path, monkeypatch):
    names = ("one", "two")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        small_tokenizer("vqvae").save_pretrained(tmp_path / "both" / name)
    run, inside = tmp_path / "prior", ["--subfolder", "two"]
    chosen = ["--tokenizer", tmp_path / "both", *inside, "--data", "digits", "data.limit=20"]
    assert spectok("train", "prior", "gpt", *QUICK, *chosen, "--output", run)[0] == 0
    found = load_pair(run)[1]
    wanted = load_tokenizer(tmp_path / "both" / "two")
    assert model_fingerprint(found) == model_fingerprint(wanted)
    sample = ["sample", "--prior", run, "--num-images", 2, "--out", tmp_path / "a.png"]
    assert spectok(*sample)[0] == 0
    explicit = ["--tokenizer", tmp_path / "both"]
    assert spectok(*sample, *explicit, *inside)[0] == 0
    status, _, complaint = spectok(*sample, *explicit, "--subfolder", "one")
    assert status == 2
    assert "give the tokenizer it was trained with" in complaint
    status, _, complaint = spectok(*sample, *inside)
    assert status == 2
    assert "give --tokenizer too" in complaint
    tokens = ["--data", "digits", "limit=20", "--out", tmp_path / "tokens"]
    assert spectok("extract", tmp_path / "both", *inside, *tokens)[0] == 0
    again = ["train", "prior", "gpt", *QUICK, "--tokens", tmp_path / "tokens"]
    assert spectok(*again, "--output", tmp_path / "again")[0] == 0
    assert model_fingerprint(load_pair(tmp_path / "again")[1]) == model_fingerprint(wanted)
    assert spectok("export", run, "--out", tmp_path / "pipe")[0] == 0
    status, _, complaint = spectok(*again[:-2], "--tokenizer", "vqvae/digits", *inside)
    assert status == 2
    assert "tokenizer_subfolder: two is a folder inside a trained tokenizer's" in complaint


def test_a_tokenizer_inside_a_repository_of_the_hub_is_found_again(spectok, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "models--someone--both"
    for name in ("one", "two"):
        folder = root / "snapshots" / ("0" * 40) / name
        small_tokenizer("vqvae").save_pretrained(folder)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    run, inside = tmp_path / "prior", ["--subfolder", "two"]
    chosen = ["--tokenizer", "someone/both", *inside, "--data", "digits", "data.limit=20"]
    assert spectok("train", "prior", "gpt", *QUICK, *chosen, "--output", run)[0] == 0
    assert spectok("sample", "--prior", run, "--num-images", 2, "--out", tmp_path / "a.png")[0] == 0
    assert spectok("doctor", "someone/both", *inside)[0] == 0


def test_a_seed_and_a_class_give_the_same_picture(spectok, trained, tmp_path):
    pictures = [tmp_path / f"{i}.png" for i in range(3)]
    for picture, more in zip(pictures, (["--batch-size", 2], ["--batch-size", 5], ["--seed", 1])):
        command = ["sample", "--prior", trained, "--class", 3, "--num-images", 5, "--top-k", 4]
        assert spectok(*command, "--out", picture, *more)[0] == 0
    contents = [picture.read_bytes() for picture in pictures]
    assert contents[0] == contents[1] != contents[2]


def test_images_are_completed_from_their_first_tokens(spectok, trained, tokenizer_folder, tmp_path):
    image, tokens = tmp_path / "image.png", tmp_path / "tokens.npz"
    Image.radial_gradient("L").resize((16, 16)).save(image)
    assert spectok("encode", tokenizer_folder, image, "--out", tokens)[0] == 0
    given = ["sample", "--prior", trained, "--num-images", 2, "--complete", tokens]
    contents = []
    for more in (["--keep", "0:8"], ["--keep", "8", "--seed", 1], ["--keep", "0:4"]):
        picture = tmp_path / "completed.png"
        assert spectok(*given, *more, "--out", picture)[0] == 0
        contents.append(picture.read_bytes())
    assert contents[0] == contents[1] != contents[2]  # all 8 tokens are kept: nothing is drawn

    stored = np.load(tokens)
    np.savez(tmp_path / "other.npz", **(dict(stored) | {"weights": json.dumps("0" * 64)}))
    out = ["--out", tmp_path / "x.png"]
    for words, message in [
        ([*given[:-1], tmp_path / "other.npz"], "holds tokens of another tokenizer"),
        ([*given[:-2], "--keep", 4], "--keep 4 needs the tokens it is about; give --complete"),
        ([*given, "--keep", "3:1"], "--keep 3:1: 3:1 is not a range within the 8 tokens"),
        ([*given, "--keep", "0:2,a"], "--keep 0:2,a is neither a number of tokens nor ranges"),
        ([*given[:-1], tmp_path / "no.npz"], "does not exist"),
        ([*given[:3], "--guidance-interval", 0.6, 0.2], "guidance_interval 0.6..0.2 must be two"),
    ]:
        status, _, err = spectok(*words, *out)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err


def test_bad_input_is_one_line(spectok, trained, tmp_path):
    out = ["--out", tmp_path / "x.png"]
    for words, message in [
        (["--prior", trained, "--class", 10], "class 10 is not one of this prior's classes (0..9)"),
        (["--prior", tmp_path / "no"], "give a trained prior"),
        (["--prior", trained, "--tokenizer", "qgvae"], "names an untrained tokenizer"),
        (["--prior", trained, "--temperature", 0], "temperature 0.0 must be at least 1e-06"),
        (["--prior", trained, "--guidance", 2], "condition_dropout"),
    ]:
        status, _, err = spectok("sample", *words, *out)
        assert (status, err.count("\n")) == (2, 1), err
        assert err.startswith("error: ")
        assert message in err
    (tmp_path / "folder.png").mkdir()
    status, _, err = spectok("sample", "--prior", trained, "--out", tmp_path / "folder.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "folder.png cannot be written" in err
    status, _, err = spectok("train", "prior", *QUICK, "--output", tmp_path / "other")
    assert (status, err.count("\n")) == (2, 1)
    assert "tokenizer: missing" in err
    status, _, err = spectok("train", "prior", "gpt", "digits", "--tokenizer", "x")
    assert (status, err) == (2, "error: give one recipe, not 2: gpt digits\n")
    tokens = trained / "tokens" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[1:])
    status, _, err = spectok("train", "prior", "--tokens", trained / "tokens", *QUICK)
    assert (status, err.count("\n")) == (2, 1)
    assert "tokens.bin is damaged" in err


def test_a_prior_with_weights_missing_is_refused(spectok, trained, tmp_path):
    weights = trained / "model" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    status, _, err = spectok("sample", "--prior", trained, "--out", tmp_path / "x.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot load" in err


def command(*words):
    found = typer.main.get_command(build_app())
    for word in words:
        found = found.commands[word]
    return found


def options(*words):
    """Return the options of a command by name, each as it is declared."""
    return {
        param.name: (param.opts, param.help, 0 if param.is_flag else param.nargs)
        for param in command(*words).params
        if param.param_type_name == "option" and param.name != "help"
    }


def test_both_commands_that_draw_take_the_same_sampling_options():
    kinds = (SamplingOptions, DiffusionOptions, MaskedOptions)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    sample, text_to_image = options("sample"), options("text-to-image")
    assert fields <= sample.keys() & text_to_image.keys()
    own = {"prior", "label", "complete", "keep"}, {"model", "text", "pretrained"}
    shared = sample.keys() - own[0]
    assert shared == text_to_image.keys() - own[1]
    assert {name: sample[name] for name in shared} == {name: text_to_image[name] for name in shared}


SCRIPTS = {
    "train_tokenizer": ("train", "tokenizer"),
    "train_prior": ("train", "prior"),
    "train_cat": ("train", "prior"),
    "train_ldm": ("train", "prior"),
    "extract_tokens": ("extract",),
    "sample": ("sample",),
    "evaluate_prior": ("eval", "prior"),
    "text_to_image": ("text-to-image",),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_passes_every_option_on(script, monkeypatch):
    words = ["train.steps=2"]
    for names, _, num_values in options(*SCRIPTS[script]).values():
        words += [names[0], *["1"] * num_values]
    recipe = ["--config", "r"] if script.startswith("train") else []
    run = []
    monkeypatch.setattr("spectok.cli.main", run.append)
    monkeypatch.setattr("spectok.cli.scripts.main", run.append)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *recipe, *words])
    runpy.run_path(str(ROOT / "generation" / f"{script}.py"), run_name="__main__")
    assert run == [[*SCRIPTS[script], *recipe[1:], *words]]


def test_the_recipe_of_a_script_stands_anywhere_or_is_its_own(capsys):
    train = ["train", "prior"]
    words = command_words(train, arguments=["a=1", "--resume", "--config=r", "--data", "d"])
    assert words == [*train, "r", "a=1", "--resume", "--data", "d"]
    assert command_words(train, "ldm", ["--text", "t"]) == [*train, "ldm", "--text", "t"]
    with pytest.raises(SystemExit):
        command_words(train, arguments=["--resume"])
    assert "required: --config" in capsys.readouterr().err


def test_scripts_are_the_commands(tmp_path):
    for script in ("extract_tokens", "train_prior", "train_ldm", "sample"):
        path = ROOT / "generation" / f"{script}.py"
        result = subprocess.run(
            [sys.executable, path, "--help"], capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        assert "usage" in result.stdout.lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [["accelerate", "launch"], ["torchrun", "--standalone", "--nproc_per_node", "2"]],
)
def test_the_smoke_recipe_trains_from_nothing(tmp_path, launcher):
    script, config = "generation/train_prior.py", "configs/smoke/prior_gpt.yaml"
    program = Path(sys.executable).parent / launcher[0]
    command = [program, *launcher[1:], script, "--config", config, "--output", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("next: spectok sample") == 1
    assert (tmp_path / "run" / "model" / "config.json").is_file()
