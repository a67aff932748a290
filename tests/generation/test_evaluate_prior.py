"""``spectok eval`` for priors: the same numbers for every batch size and number of processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectok import load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import DataError, InputError
from spectok.evaluation import ImageClassifier, Networks, evaluate_images
from spectok.testing.small import small_tokenizer
from spectok.training.launch import accelerated
from spectok.training.train_config import TrainConfig
from spectok_generation import (
    DiffusionOptions,
    TokenPipeline,
    create_prior,
    evaluate_prior,
    load_prior,
    load_text_encoder,
)
from spectok_generation.evaluation import choose_wanted
from spectok_generation.records import tokenizer_record
from spectok_generation.sample_folder import MANIFEST, read_samples

ROOT = Path(__file__).parents[2]
PRIORS = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16, "num_classes": 10},
    "pixelcnn": {"num_layers": 2, "width": 8},
    "maskgit": {"num_layers": 1, "num_heads": 2, "width": 16, "num_classes": 10},
    "ldm": {
        "channels": [8, 16],
        "layers": 1,
        "attention_levels": [1],
        "num_timesteps": 20,
        "num_classes": 10,
    },
    "cat": {"num_layers": 1, "num_heads": 2, "width": 16},
}
OPTIONS = {"ldm": DiffusionOptions(num_steps=2)}


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    return small_tokenizer("vqvae", in_channels=3).eval()


@pytest.fixture(scope="module")
def shapes(tokenizer):
    """Return captioned images of the tokenizer's size; their classes are more than ten."""
    data = DataConfig(
        name="shapes", split="test", limit=20, image_size=tokenizer.image_shape[1], channels=3
    )
    return build_dataset(data, train=False)


@pytest.fixture(scope="module")
def classifier(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(3)
    options = {"channels": 4, "feature_dim": 6, "trained_on": "shapes", "held_out_accuracy": 0.25}
    ImageClassifier(tokenizer.image_shape, 10, **options).save_pretrained(folder)
    return folder


@pytest.fixture
def make(tokenizer, sharp):
    def make(kind, **options):
        record = tokenizer_record(tokenizer)
        torch.manual_seed(2)
        options = {**PRIORS[kind], **options}
        return sharp(create_prior(kind, tokenizer.token_spec, tokenizer=record, **options))

    return make


@pytest.mark.parametrize("kind", PRIORS)
def test_every_kind_of_prior_is_measured(
    kind, make, tokenizer, shapes, classifier, save_small_clip, tmp_path
):
    encoder, text = None, {}
    if kind == "cat":
        save_small_clip(tmp_path / "clip")
        encoder = load_text_encoder(str(tmp_path / "clip"))
        text = {"text": encoder.record}
    prior, networks = make(kind, **text), Networks(classifier=classifier)
    wanted = choose_wanted(prior, shapes, 13, seed=3, options=OPTIONS.get(kind))
    if kind == "cat":
        assert wanted.prompts == [shapes.captions_of(i)[0] for i in range(20)]
    found = [
        evaluate_prior(prior, tokenizer, shapes, wanted, networks, encoder=encoder, batch_size=size)
        for size in (7, 64)
    ]
    assert found[0] == found[1]
    kept = tmp_path / "images"
    again = evaluate_prior(prior, tokenizer, shapes, wanted, networks, encoder=encoder, folder=kept)
    assert again == found[0]
    images = list(read_samples(kept, 13, tokenizer.image_shape, batch_size=4))
    alone = evaluate_images(images, shapes, networks, seed=3)
    assert alone["metrics"].items() <= found[0]["metrics"].items()
    assert ("class_accuracy" in found[0]["metrics"]) == (prior.num_classes > 0)
    protocol = found[0]["protocol"]
    assert (protocol["num_generated"], protocol["num_images"], protocol["seed"]) == (13, 20, 3)
    assert protocol["features"]["classifier"]["held_out_accuracy"] == 0.25
    assert "fid" in found[0]["not_measured"] or "fid" in found[0]["metrics"]


def test_another_seed_or_number_is_another_protocol(make, tokenizer, shapes, classifier):
    prior, networks = make("gpt"), Networks(classifier=classifier)
    ids = {
        evaluate_prior(
            prior, tokenizer, shapes, choose_wanted(prior, shapes, count, seed=seed), networks
        )["protocol"]["id"]
        for count, seed in ((4, 0), (4, 1), (5, 0))
    }
    assert len(ids) == 3


def test_what_cannot_be_measured_is_refused_before_drawing(
    make, tokenizer, shapes, tmp_path, monkeypatch
):
    prior = make("gpt")
    monkeypatch.setattr("spectok_generation.evaluation.draw_to_folder", None)
    with pytest.raises(InputError, match="1 drawn and 20 real images"):
        evaluate_prior(prior, tokenizer, shapes, choose_wanted(prior, shapes, 1))
    digits = build_dataset(DataConfig(name="digits", split="test", limit=5), train=False)
    with pytest.raises(InputError, match="do not fit the tokenizer"):
        evaluate_prior(prior, tokenizer, digits, choose_wanted(prior, digits, 4))
    ImageClassifier((1, 8, 8), 10, trained_on="x").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"takes images of shape \(1, 8, 8\)"):
        evaluate_prior(
            prior, tokenizer, shapes, choose_wanted(prior, shapes, 4), Networks(classifier=tmp_path)
        )
    reading = make("cat", text={"fingerprint": "x", "path": "a test", "width": 6})
    with pytest.raises(DataError, match="draws captions, and the data has none"):
        choose_wanted(reading, digits, 4)


def evaluate_rank(prior, tokenizer, dataset, wanted, networks, file):
    with accelerated(TrainConfig(), Path()):
        found = evaluate_prior(prior, tokenizer, dataset, wanted, networks, batch_size=3)
    if os.environ["RANK"] == "1":
        file.write_text(json.dumps(found))


def test_two_processes_measure_what_one_measures(
    make, tokenizer, shapes, classifier, fork_ranks, tmp_path
):
    prior, networks = make("gpt"), Networks(classifier=classifier)
    wanted = choose_wanted(prior, shapes, 13)
    alone = evaluate_prior(prior, tokenizer, shapes, wanted, networks)
    given = (prior, tokenizer, shapes, wanted, networks, tmp_path / "found.json")
    assert fork_ranks(evaluate_rank, *given) == [0, 0]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(json.dumps(alone))


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def pipeline(make, tokenizer, tmp_path):
    TokenPipeline(tokenizer, make("gpt")).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


SHAPES = ["--data", "shapes", "--limit", "20"]


def test_eval_measures_a_prior_or_a_tokenizer(spectok, pipeline, classifier, tmp_path):
    words = ["--num-images", 9, "--classifier", classifier, *SHAPES, "--out", tmp_path / "r.json"]
    status, out, err = spectok("eval", pipeline, *words, "--images", tmp_path / "kept")
    assert status == 0, err
    assert "9 images drawn, compared with 20 images, protocol " in out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["protocol"]["id"] in out
    assert {"classifier_frechet", "class_accuracy"} <= set(found["metrics"])
    assert (tmp_path / "kept" / MANIFEST).is_file()
    status, _, err = spectok("eval", "prior", pipeline, *words, "--images", tmp_path / "kept")
    assert status == 0, err
    again = json.loads((tmp_path / "r.json").read_text())
    assert again.pop("command").split()[:3] == ["spectok", "eval", "prior"]
    assert again == {key: value for key, value in found.items() if key != "command"}
    status, out, err = spectok("eval", pipeline / "tokenizer", *SHAPES, "--classifier", classifier)
    assert status == 0, err
    assert "classifier_kid" in out
    assert "psnr" in out


def test_info_describes_a_prior_or_a_tokenizer(spectok, pipeline):
    for words in (["info"], ["info", "prior"]):
        status, out, err = spectok(*words, pipeline)
        assert status == 0, err
        assert re.search(r"^class +GPT$", out, re.MULTILINE)
        assert out.splitlines()[-1].startswith(f"next: spectok sample --prior {pipeline}")
    facts = json.loads(spectok("info", pipeline / "prior", "--json")[1])
    whole = json.loads(spectok("info", pipeline / "tokenizer", "--json")[1])
    shared = ("tokens", "levels", "order", "prefix", "bits_per_image", "image_shape")
    assert {name: facts[name] for name in shared} == {name: whole[name] for name in shared}
    assert facts["parameters"] == sum(
        p.numel() for p in load_prior(pipeline / "prior").parameters()
    )
    assert whole["class"] == "VQVAE"
    status, _, err = spectok("info", "prior", pipeline / "tokenizer")
    assert status == 2
    assert "VQVAE" in err


def test_a_run_knows_what_it_was_trained_on(spectok, tokenizer_folder, tmp_path):
    quick = ["train.steps=2", "train.batch_size=4", "train.sample_every=null"]
    given = ["--tokenizer", tokenizer_folder, "--data", "digits", "--output", tmp_path / "run"]
    assert spectok("train", "prior", "gpt", "prior.size=gpt-nano", *quick, *given)[0] == 0
    size = f"image_size={load_tokenizer(tokenizer_folder).image_shape[1]}"
    status, out, err = spectok("eval", tmp_path / "run", size, "--num-images", 3, "--limit", 5)
    assert status == 0, err
    assert "3 images drawn, compared with 5 images" in out
    status, out, err = spectok("eval", tmp_path / "run" / "model", "--num-images", 3, "--limit", 5)
    assert status == 0, err


def test_bad_input_is_one_line(spectok, pipeline, tokenizer_folder, tmp_path):
    for words, message in [
        ([tmp_path / "no", "--num-images", 4], f"{tmp_path / 'no'} does not exist"),
        ([pipeline, "--num-images", 4], "says what images it was trained on; give --data"),
        ([pipeline, "--num-images", 1, *SHAPES], "at least 2 of each (--num-images, --limit)"),
        ([pipeline, "--num-images", -3, *SHAPES], "num_images -3"),
        ([pipeline, *SHAPES], "give --num-images, to measure"),
        ([pipeline, "--num-images", 4, "--likelihood", *SHAPES], "give --num-images, to measure"),
        (
            [pipeline, "--likelihood", "--top-k", 2, *SHAPES],
            "--top-k is about images that are drawn; --likelihood draws none",
        ),
        ([pipeline, "--num-images", 4, *SHAPES, "image_size=32"], "do not fit the tokenizer"),
        ([pipeline, "--num-images", 4, *SHAPES, "channels=1"], "do not fit the tokenizer"),
        ([pipeline, "--num-images", 4, *SHAPES, "--out", "r.txt"], "does not end in .json"),
        (
            [pipeline, "--num-images", 4, *SHAPES, "--tokenizer", tokenizer_folder],
            "models the tokens of",
        ),
        ([pipeline, "--num-images", 4, *SHAPES, "--images", pipeline], "no samples.json"),
        (["prior", tokenizer_folder, "--num-images", 4], "no installed plugin provides as a prior"),
    ]:
        status, _, err = spectok("eval", *words)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err


def test_numbers_of_drawn_images_are_not_verified(spectok, pipeline, tmp_path):
    result = tmp_path / "r.json"
    assert spectok("eval", pipeline, "--num-images", 4, *SHAPES, "--out", result)[0] == 0
    for words, message in [
        ([result, "--verify"], "come again from the same 'spectok eval PRIOR --num-images N'"),
        (["--verify", pipeline], "has no README.md; 'spectok eval"),
    ]:
        status, _, err = spectok("eval", *words)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err


def test_a_prior_without_its_tokenizer_is_refused(spectok, make, tmp_path):
    make("gpt").save_pretrained(tmp_path / "alone")
    status, _, err = spectok("eval", tmp_path / "alone", "--num-images", 4, *SHAPES)
    assert (status, err.count("\n")) == (2, 1), err
    assert "give it with --tokenizer" in err


@pytest.mark.slow
def test_accelerate_launches_two_processes_that_measure_what_one_measures(
    pipeline, classifier, tmp_path
):
    program = Path(sys.executable).parent / "accelerate"
    launch = [program, "launch", "--config_file", ROOT / "configs/accelerate/cpu2.yaml"]
    script = str(ROOT / "generation" / "evaluate_prior.py")
    words = [str(pipeline), "--num-images", "23", "--classifier", str(classifier), *SHAPES]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for command, size, name in [
        ([sys.executable, script], "7", "one.json"),
        ([*launch, script], "64", "two.json"),
    ]:
        done = subprocess.run(
            [*command, *words, "--batch-size", size, "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("23 images drawn") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one.pop("command") != two.pop("command")
    assert one == two
