"""What a command imports before it has anything to compute, counted in real interpreters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

NETWORKS = ["torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors"]
OTHERS = ["open_clip", "datasets", "torchmetrics", "lpips", "sklearn", "skimage", "matplotlib"]
OTHERS += ["scipy", "pandas", "pyarrow"]
COUNT = """
import json, sys
from spectok.cli import main

heavy, commands = json.loads(sys.argv[1]), json.loads(sys.argv[2])
imported = []
for words in commands:
    before = set(sys.modules)
    try:
        main(words)
    except SystemExit as stop:
        status = stop.code
    imported.append([status, [m for m in heavy if m in sys.modules and m not in before]])
print()
print(json.dumps(imported))
"""
ANSWERED = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["eval", "--help"],
    ["sample", "--help"],
    *(["list", kind] for kind in ("tokenizers", "quantizers", "discriminators", "priors")),
    *(["list", kind] for kind in ("models", "datasets", "metrics", "recipes", "plugins")),
    ["list", "tokenizers", "--json"],
]
REFUSED = [
    ["info", "vqave"],
    ["info", "./nowhere"],
    ["list", "everything"],
    ["encode", "./nowhere", "picture.png", "--out", "t.npz"],
    ["encode", "vqvae", "picture.png", "--out", "t.npz"],
    ["reconstruct", "./nowhere", "picture.png", "--out", "grid.png"],
    ["changes", "vqvae", "picture.png", "picture.png"],
    ["decode", "./nowhere", "t.npz", "--out", "decoded"],
    ["doctor", "./nowhere"],
    ["eval", "./nowhere"],
    ["eval", "vqvae"],
    ["train", "vqave"],
    ["train", "vqvae", "train.stepz=3"],
    ["train", "vqvae", "train.steps=many"],
    ["train", "vqvae", "tokenizer.codebok_size=3"],
    ["train", "vqvae", "steps=3"],
    ["train", "vqvae", "--data", "./nowhere"],
    ["train", "vqvae", "--data", "digit"],
    ["train", "no/such.yaml"],
    ["train", "prior"],
    ["train", "prior", "gpx"],
    ["train", "prior", "--tokens", "t", "prior.sise=gpt-nano"],
    ["plan", "vqave"],
    ["plan", "vqvae", "train.stepz=3"],
    ["sample", "--prior", "./nowhere", "--out", "s.png"],
    ["text-to-image", "a cat", "--model", "./nowhere", "--out", "s.png"],
    ["export", "./nowhere", "--out", "pipeline"],
    ["ui", "nope"],
    ["ui", "./nope"],
    ["train", "vqvae", "data.path=./nowhere"],
    ["train", "vqvae", "--data", "./empty"],
    ["train", "vqvae", "init_from=runs/nope"],
    ["train", "vqvae", "--output", "picture.png"],
    ["train", "vqvae", "--output", "picture.png/run"],
    ["train", "prior", "gpt/digits", "--tokenizer", "runs/tk"],
    ["train", "prior", "--tokenizer", "vqvae"],
    ["train", "prior", "--tokenizer", "./nope", "--data", "./nope"],
    ["train", "prior", "--tokenizer", "vqvae/mnist", "--data", "./nope"],
    ["train", "prior", "--tokenizer", "vqvae/mnist", "--data", "digits", "--text", "runs/nope"],
    ["train", "prior", "--tokens", "runs/nope"],
    ["train", "prior", "--tokenizer", "vqvae/mnist", "--output", "picture.png"],
    ["train", "clip", "--data", "runs/nope"],
    ["train", "clip", "--data", "shapes", "--output", "picture.png"],
    ["train", "classifier", "--data", "./nope"],
    ["train", "classifier", "--output", "picture.png"],
    ["extract", "runs/nope", "--out", "z"],
    ["extract", "vqvae/mnist", "--data", "./nope", "--out", "z"],
    ["codes", "runs/nope", "--data", "digits", "--out", "z.png"],
    ["codes", "vqvae/mnist", "--data", "./nope", "--out", "z.png"],
    ["rd", "runs/nope", "--out", "z"],
    ["compare", "vqvae", "qgvea"],
    ["compare", "vqvae", "runs/nope"],
    ["compare", "vqvae", "--data", "./nope"],
    ["compare", "vqvae", "train.stepz=3"],
    ["eval", "vqvae/mnist", "--data", "./nope"],
    ["eval", "--verify", "runs/nope"],
    ["doctor", "vqvae/mnist", "--data", "./nope"],
    ["import", "nope.pt", "--format", "taming", "--out", "z"],
    ["import", "picture.png", "--format", "tamming", "--out", "z"],
    ["decode", "vqvae/mnist", "nope.npz", "--out", "z"],
    ["sample", "--prior", "tokenizer", "--out", "s.png"],
    ["resume", "run", "train.batch_size=8"],
    ["resume", "run", "train.steps=2"],
]


def python(code, *arguments, cwd):
    words = [sys.executable, "-c", code, *map(json.dumps, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def counted(heavy, commands, folder):
    """Run commands one after another in one new interpreter; return what each imports."""
    found = json.loads(python(COUNT, heavy, commands, cwd=folder).splitlines()[-1])
    return {" ".join(words): tuple(one) for words, one in zip(commands, found)}


def test_listing_and_help_import_no_network_library(tmp_path):
    found = counted(NETWORKS + OTHERS, ANSWERED, tmp_path)
    assert found == {" ".join(words): (0, []) for words in ANSWERED}


def test_what_is_refused_is_refused_before_a_network_library_is_imported(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.json").write_text('{"_class_name": "VQVAE"}')
    newest = tmp_path / "run" / "checkpoints" / "step-00000009"
    newest.mkdir(parents=True)
    (newest / "manifest.json").write_text('{"samples_per_step": 4, "num_processes": 1}')
    train = "{steps: 20, batch_size: 4, gradient_accumulation: 1}"
    (tmp_path / "run" / "recipe.yaml").write_text(f"tokenizer: {{name: vqvae}}\ntrain: {train}\n")
    found = counted(NETWORKS + OTHERS, REFUSED, tmp_path)
    assert found == {" ".join(words): (2, []) for words in REFUSED}


@pytest.mark.slow
def test_a_command_on_a_model_imports_only_what_the_model_is_made_of(tmp_path):
    (status, imported), *_ = counted(OTHERS, [["info", "vqvae"]], tmp_path).values()
    assert (status, imported) == (0, [])


@pytest.mark.parametrize("name", ["load_tokenizer", "create_quantizer", "list_tokenizers"])
def test_what_a_script_begins_with_imports_no_network_library(name, tmp_path):
    code = (
        f"import json, sys\nfrom spectok import {name}\n"
        "print([m for m in json.loads(sys.argv[1]) if m in sys.modules])"
    )
    assert python(code, NETWORKS + OTHERS, cwd=tmp_path) == "[]\n"
