"""Drawn images as files: the same for every batch size and number of processes, and restartable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, InputError
from spectok.images import to_uint8
from spectok.modeling import model_fingerprint
from spectok.testing.small import small_tokenizer
from spectok.training.launch import accelerated
from spectok.training.train_config import TrainConfig
from spectok_generation import (
    DiffusionOptions,
    SamplingOptions,
    Wanted,
    create_prior,
    draw_images,
    draw_to_folder,
    load_text_encoder,
)
from spectok_generation.records import prior_fingerprint, tokenizer_record
from spectok_generation.sample_folder import MANIFEST, PLAN, read_samples
from spectok_generation.sampling import Known

ROOT = Path(__file__).parents[2]
SMALL = {"num_layers": 1, "num_heads": 2, "width": 16}
LDM = {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 20}
PRIORS = {
    "gpt": SMALL | {"num_classes": 3},
    "pixelcnn": {"num_layers": 2, "width": 8},
    "maskgit": SMALL | {"num_classes": 3},
    "ldm": LDM | {"num_classes": 3},
    "cat": SMALL | {"condition_dropout": 0.0},
}
OPTIONS = {"ldm": DiffusionOptions(num_steps=2)}
LABELS = torch.arange(11) % 3
PROMPTS = ["a red circle", "a large blue ring"]


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    return small_tokenizer("vqvae", in_channels=3).eval()


@pytest.fixture(scope="module")
def encoder(save_small_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_small_clip(folder)
    return load_text_encoder(str(folder))


@pytest.fixture
def make(tokenizer, encoder, sharp):
    """Build a prior with random weights, and say what to draw from it."""

    def make(kind):
        options = PRIORS[kind] | ({"text": encoder.record} if kind == "cat" else {})
        record = tokenizer_record(tokenizer)
        torch.manual_seed(2)
        prior = sharp(create_prior(kind, tokenizer.token_spec, tokenizer=record, **options))
        labels = LABELS if prior.num_classes else None
        prompts = PROMPTS if kind == "cat" else None
        return prior, Wanted(11, labels, prompts, seed=4, options=OPTIONS.get(kind))

    return make


@pytest.fixture
def gpt(make):
    return make("gpt")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", PRIORS)
def test_files_are_the_images_that_are_drawn(kind, make, tokenizer, encoder, tmp_path):
    prior, wanted = make(kind)
    given = {"encoder": encoder} if kind == "cat" else {}
    manifest = draw_to_folder(prior, tokenizer, tmp_path / "a", wanted, batch_size=7, **given)
    draw_to_folder(prior, tokenizer, tmp_path / "b", wanted, batch_size=64, **given)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    images = draw_images(
        prior,
        tokenizer,
        11,
        wanted.condition(range(11), encoder),
        seed=4,
        options=wanted.options,
    )
    assert len(images.flatten(1).unique(dim=0)) > 1
    found = torch.cat(list(read_samples(tmp_path / "a", 11, tokenizer.image_shape, batch_size=4)))
    assert torch.equal(to_uint8(found), to_uint8(images))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"{i:06d}.png" for i in range(11)]
    assert {row["prior"] for row in rows} == {prior_fingerprint(prior)}
    assert {row["tokenizer"] for row in rows} == {model_fingerprint(tokenizer)}
    assert [(row["number"], row["seed"]) for row in rows] == [(i, 4) for i in range(11)]
    if wanted.labels is not None:
        assert [row["class"] for row in rows] == LABELS.tolist()
    if kind == "cat":
        assert [row["prompt"] for row in rows] == [PROMPTS[i % 2] for i in range(11)]
    setting = {"num_steps": 2, "scheduler": "ddim"} if kind == "ldm" else {"temperature": 1.0}
    assert rows[0].items() >= {**setting, "guidance": 1.0}.items()


def test_a_folder_of_samples_is_a_data_set(gpt, make, tokenizer, encoder, tmp_path):
    prior, wanted = gpt
    draw_to_folder(prior, tokenizer, tmp_path / "classes", wanted)
    dataset = build_dataset(DataConfig(name="folder", path=str(tmp_path / "classes")))
    numbers = [int(Path(dataset.name_of(row)).stem) for row in range(len(dataset))]
    assert len(numbers) > 5
    assert dataset.labels.tolist() == [number % 3 for number in numbers]
    prior, wanted = make("cat")
    draw_to_folder(prior, tokenizer, tmp_path / "texts", wanted, encoder=encoder)
    dataset = build_dataset(DataConfig(name="folder", path=str(tmp_path / "texts")))
    for row in range(len(dataset)):
        number = int(Path(dataset.name_of(row)).stem)
        assert dataset.captions_of(row) == (PROMPTS[number % 2],)


def test_drawing_goes_on_where_it_stopped(gpt, tokenizer, tmp_path, monkeypatch):
    prior, wanted = gpt
    draw_to_folder(prior, tokenizer, tmp_path / "whole", wanted)
    drawn = []

    def stop(count):
        drawn.append(count)
        if sum(drawn) >= 4:
            raise KeyboardInterrupt

    target = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        draw_to_folder(prior, tokenizer, target, wanted, batch_size=2, on_images=stop)
    assert not (target / MANIFEST).exists()
    assert len(list(target.glob("*.png"))) == 4
    kept = (target / "000000.png").stat().st_mtime_ns
    (target / "000002.png").unlink()
    (target / ".123.partial.png").write_bytes(b"half of a")
    counts = []
    draw_to_folder(prior, tokenizer, target, wanted, batch_size=5, on_images=counts.append)
    assert counts == [3, 5, 3]
    assert (target / "000000.png").stat().st_mtime_ns == kept
    assert contents(target) == contents(tmp_path / "whole")
    for number, size in ((3, 0), (5, 40)):  # cut short by a disk that lost power
        os.truncate(target / f"{number:06d}.png", size)
    draw_to_folder(prior, tokenizer, target, wanted, on_images=(counts := []).append)
    assert counts == [9, 2]
    assert contents(target) == contents(tmp_path / "whole")
    monkeypatch.setattr("spectok_generation.sample_folder.draw_batch", None)  # nothing is drawn
    draw_to_folder(prior, tokenizer, target, wanted)


def test_damaged_images_and_a_damaged_manifest_are_mended(gpt, tokenizer, tmp_path):
    prior, wanted = gpt
    target = tmp_path / "x"
    manifest = draw_to_folder(prior, tokenizer, target, wanted)
    whole, image = contents(target), target / "000003.png"
    half = len(whole[image.name]) // 2
    for damaged in (
        whole[image.name][:half] + bytes(9) + whole[image.name][half + 9 :],
        whole[image.name][:-1],
        whole["000004.png"][: half // 2] + whole[image.name][half // 2 :],
        b"not a picture",
    ):
        image.write_bytes(damaged)
        draw_to_folder(prior, tokenizer, target, wanted, on_images=(counts := []).append)
        assert counts == [10, 1]
        assert contents(target) == whole
    lines = whole[MANIFEST].splitlines(keepends=True)
    for damaged in (
        whole[MANIFEST][: len(whole[MANIFEST]) // 2],
        b"",
        b"".join([*lines, lines[0]]),
        b"".join(reversed(lines)),
        whole[MANIFEST].replace(b'"seed": 4', b'"seed": 5'),
        b"[" * 10_000,
        b"\xff",
    ):
        manifest.write_bytes(damaged)
        draw_to_folder(prior, tokenizer, target, wanted)
        assert contents(target) == whole
    described = b"".join(line.replace(b"{", b'{"text": "a three", ', 1) for line in lines)
    manifest.write_bytes(described)  # somebody's own column is kept
    draw_to_folder(prior, tokenizer, target, wanted)
    assert manifest.read_bytes() == described


def test_the_manifest_tells_what_was_kept(gpt, tokenizer, tmp_path):
    prior, wanted = gpt
    count = prior.token_spec.num_tokens
    keep = torch.zeros(11, count, dtype=torch.bool)
    keep[0], keep[1, :2], keep[2, 1], keep[2, 3:] = True, True, True, True
    known = Known(torch.zeros_like(keep, dtype=torch.int64), keep)
    read = Known(known.indices, keep, "tokens.npz", torch.arange(11) % 2)
    for name, given, more in [("own", known, {}), ("read", read, {"complete": "tokens.npz"})]:
        settings = {**vars(wanted), "known": given}
        manifest = draw_to_folder(prior, tokenizer, tmp_path / name, Wanted(**settings))
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        ranges = [f"0:{count}", "0:2", f"1:2,3:{count}", *[""] * 8]
        assert [row["keep"] for row in rows] == ranges
        assert all(row.items() >= more.items() for row in rows)
        assert [row.get("row") for row in rows] == [i % 2 if more else None for i in range(11)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "drawn with seed 4, not 5"),
        ({"options": SamplingOptions(temperature=0.8)}, "temperature 1.0, not 0.8"),
        ({"num_images": 10, "labels": LABELS[:10]}, "num_images 11, not 10"),
        ({"labels": LABELS.flip(0)}, "other labels"),
        ({"known": True}, "other known"),
    ],
)
def test_other_settings_are_refused(gpt, tokenizer, tmp_path, changes, message):
    prior, wanted = gpt
    draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    before = contents(tmp_path / "x")
    settings = {**vars(wanted), **changes}
    if "known" in changes:
        known = torch.zeros(11, 1, dtype=torch.int64)
        settings["known"] = Known.prefix(known, prior.token_spec.num_tokens)
    with pytest.raises(CheckpointError, match=f"holds images .*{message}; give another"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", Wanted(**settings))
    assert contents(tmp_path / "x") == before


def test_other_weights_and_other_folders_are_refused(gpt, tokenizer, tmp_path):
    prior, wanted = gpt
    draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    with torch.no_grad():
        next(prior.parameters()).add_(0.5)
    with pytest.raises(CheckpointError, match=r"drawn with prior '\w+', not '\w+'; give another"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"holds 'photo.png' and no samples.json"):
        draw_to_folder(prior, tokenizer, tmp_path / "mine", wanted)
    assert contents(tmp_path / "mine") == {"photo.png": b"mine"}
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".123.partial.json").touch()  # killed while it wrote the plan
    draw_to_folder(prior, tokenizer, tmp_path / "begun", wanted)
    assert len(list((tmp_path / "begun").iterdir())) == 11 + len((PLAN, MANIFEST))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        draw_to_folder(prior, tokenizer, tmp_path / "file", wanted)
    (tmp_path / "x" / PLAN).write_text("")
    with pytest.raises(CheckpointError, match=r"not valid JSON.*; give another folder"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    (tmp_path / "x" / PLAN).write_text("[]")
    with pytest.raises(CheckpointError, match="holds images drawn with format None, not 1"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)


def test_what_somebody_else_put_there_is_refused_and_kept(gpt, tokenizer, tmp_path):
    prior, wanted = gpt
    manifest = draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    (tmp_path / "x" / ".DS_Store").touch()
    draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    for name in ("cat.png", "000011.png"):
        (tmp_path / "x" / name).write_bytes(b"mine")
        with pytest.raises(CheckpointError, match=f"holds '{name}', which is no image drawn for"):
            draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
        assert (tmp_path / "x" / name).read_bytes() == b"mine"
        (tmp_path / "x" / name).unlink()
    (tmp_path / "x" / "000003.png").unlink()
    (tmp_path / "x" / "000003.png").mkdir()
    manifest.unlink()
    with pytest.raises(CheckpointError, match=r"holds '000003\.png', which is no image drawn for"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    assert not manifest.exists()


def test_what_a_prior_cannot_draw_is_refused(gpt, make, tokenizer, encoder, tmp_path):
    prior, wanted = gpt
    for wrong, message in [
        (Wanted(11), "class always given"),
        (Wanted(10, LABELS), r"of shape \(11,\) are not \(10,\)"),
        (Wanted(1, torch.tensor([3])), "class 3 is outside 0..2"),
        (Wanted(1, prompts=["a ring"]), "reads no text; leave prompts out"),
        (Wanted(0), "num_images 0"),
    ]:
        with pytest.raises(InputError, match=message):
            draw_to_folder(prior, tokenizer, tmp_path / "x", wrong)
    prior, wanted = make("cat")
    with pytest.raises(InputError, match="give the text encoder"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", wanted)
    with pytest.raises(InputError, match="text always given"):
        draw_to_folder(prior, tokenizer, tmp_path / "x", Wanted(2), encoder=encoder)
    assert not (tmp_path / "x").exists()


def draw_rank(prior, tokenizer, wanted, folder):
    with accelerated(TrainConfig(), Path()):
        draw_to_folder(prior, tokenizer, folder, wanted, batch_size=2)


def test_two_processes_write_what_one_writes(gpt, tokenizer, fork_ranks, tmp_path):
    prior, wanted = gpt
    draw_to_folder(prior, tokenizer, tmp_path / "one", wanted)
    two = tmp_path / "two"
    assert fork_ranks(draw_rank, prior, tokenizer, wanted, two) == [0, 0]
    assert contents(two) == contents(tmp_path / "one")
    for name in ("000001.png", "000002.png", "000009.png", MANIFEST):
        (two / name).unlink()
    assert fork_ranks(draw_rank, prior, tokenizer, wanted, two) == [0, 0]
    assert contents(two) == contents(tmp_path / "one")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(gpt, tokenizer, tmp_path):
    from spectok.machine import forget_peak_memory, peak_memory_bytes

    if not forget_peak_memory():
        pytest.skip("this system does not tell the peak of memory")

    def peak(count):
        assert forget_peak_memory()
        wanted = Wanted(count, torch.arange(count) % 3)
        draw_to_folder(gpt[0], tokenizer, tmp_path / str(count), wanted, batch_size=100)
        return peak_memory_bytes()

    peak(200)  # libraries are loaded once
    channels, height, width = tokenizer.image_shape
    images = 10_000 * channels * height * width * 4
    assert peak(10_000) - peak(100) < min(16 << 20, images // 2)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def run_folder(gpt, tokenizer, tmp_path):
    """Return the folder of a prior with random weights and its tokenizer, as a pipeline."""
    from spectok_generation import TokenPipeline

    TokenPipeline(tokenizer, gpt[0]).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_sample_writes_files_or_a_picture(spectok, run_folder, tmp_path):
    draw = ["sample", "--prior", run_folder, "--num-images", 5, "--seed", 1]
    status, out, _ = spectok(*draw, "--out", tmp_path / "files", "--class", 2)
    assert status == 0
    assert "5 images, each a file" in out
    assert f"next: spectok eval {run_folder} --num-images 5 --data DATA" in out
    lines = (tmp_path / "files" / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["class"] for line in lines] == [2] * 5
    with Image.open(tmp_path / "files" / "000004.png") as picture:
        assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert spectok(*draw, "--out", tmp_path / "files", "--class", 2)[0] == 0
    assert spectok(*draw, "--out", tmp_path / "grid.png")[0] == 0
    assert (tmp_path / "grid.png").is_file()
    assert spectok(*draw, "--out", tmp_path / "at-0.9", "--temperature", 0.9)[0] == 0
    assert len(list((tmp_path / "at-0.9").glob("*.png"))) == 5
    for name in ("grid.jpg", "x.y"):
        assert spectok(*draw, "--num-images", 1, "--out", f"{tmp_path / name}/")[0] == 0
        assert (tmp_path / name / MANIFEST).is_file()


def test_bad_output_is_one_line(spectok, run_folder, tmp_path):
    draw = ["sample", "--prior", run_folder, "--num-images", 5]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for words, message in [
        (["--out", tmp_path / "mine"], "holds 'notes.txt' and no samples.json"),
        (["--out", tmp_path / "x", "--columns", 3], "--columns 3 lays out a picture"),
        (["--out", tmp_path / "grid.pgn"], "does not end in a picture format"),
        (["--out", tmp_path / "x", "--class", 3], "class 3 is not one of"),
        (["--out", f"{tmp_path / 'mine' / 'notes.txt'}/"], "is a file; give a folder"),
    ]:
        status, _, err = spectok(*draw, *words)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_accelerate_launches_two_processes_that_write_what_one_writes(run_folder, tmp_path):
    program = Path(sys.executable).parent / "accelerate"
    launch = [program, "launch", "--config_file", ROOT / "configs/accelerate/cpu2.yaml"]
    script = str(ROOT / "generation" / "sample.py")
    words = ["--prior", str(run_folder), "--num-images", "23", "--batch-size"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for command, size, name in [
        ([sys.executable, script], "7", "one"),
        ([*launch, script], "64", "two"),
    ]:
        done = subprocess.run(
            [*command, *words, size, "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("23 images") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
