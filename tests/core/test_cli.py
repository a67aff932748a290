"""The command line: what each command does, and that each mistake is one clear line."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spectok import __version__
from spectok.cli import main
from spectok.cli.tokens import distinct_stems
from spectok.loading import load_tokenizer
from spectok.plugins.registry import list_models, list_tokenizers

HEAVY = ("torch", "diffusers", "transformers", "datasets", "pydantic", "accelerate", "numpy", "PIL")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train the two smoke recipes through the command line; return their folders by key."""
    folders = {}
    for key in ("qgvae", "vqvae"):
        folders[key] = tmp_path_factory.mktemp(key) / "run"
        words = ["train", f"smoke/{key}", "--output", str(folders[key])]
        with pytest.raises(SystemExit) as stop:
            main([*words, "train.steps=4", "tokenizer.codebook_size=16", "data.limit=32"])
        assert stop.value.code == 0
    return folders


@pytest.fixture
def pictures(tmp_path):
    """Save images of several sizes and modes in a directory and one below it."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, shape in {"a": (16, 16), "b": (20, 31, 3), "deep/a": (16, 16, 3)}.items():
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def script(*words, cwd, environment=()):
    """Run ``spectok`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "spectok", *words],
        cwd=cwd,
        env=os.environ | dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
    )


def size_of(path):
    with Image.open(path) as image:
        return image.size


# Starting up.


def test_help_imports_nothing_heavy_and_answers_at_once(tmp_path):
    code = (
        "import sys\nfrom spectok.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    status = stop.code\n"
        f"print('IMPORTED', [m for m in {HEAVY!r} if m in sys.modules], status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert "IMPORTED [] 0" in done.stdout, done.stdout + done.stderr
    assert done.stderr == ""
    for command in ("info", "reconstruct", "encode", "decode", "list", "train"):
        assert command in done.stdout
    assert seconds < 2.5  # of the processor, which other programs may share


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_give_their_core_away(given, expected):
    script = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print("torch", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)  # importing it takes seconds
sys.meta_path.insert(0, Watch())
from spectok.cli import main
main(["info", "vqvae"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"torch {expected}\n" in done.stdout


def test_version(run):
    assert run("--version") == (0, f"spectok {__version__}\n", "")


def test_a_command_that_does_not_exist_is_one_line(refused):
    line = refused("trian")
    assert line.startswith("No such command 'trian'.")
    assert line.endswith("(see 'spectok --help')")
    assert "--nope" in refused("list", "tokenizers", "--nope")
    assert "Missing argument" in refused("encode", "--out", "x.npz")
    assert "is not one of" in refused("list", "everything")


def test_debug_shows_the_trace(run):
    status, _, err = run("train", "qgvea", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: unknown tokenizer 'qgvea'")


# Plugins, as real distributions on the path.


@pytest.fixture
def install(tmp_path):
    """Write a distribution with one plugin; return the environment that sees it."""

    def install(name, code):
        folder = tmp_path / "site"
        (folder / f"{name}-1.0.dist-info").mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        info = folder / f"{name}-1.0.dist-info"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[spectok.plugins]\n{name} = {name}\n")
        return {"PYTHONPATH": str(folder)}

    return install


def test_a_broken_plugin_is_one_warning(install, tmp_path):
    seen = install("cracked", "raise RuntimeError('no such chip')\n")
    done = script("--version", cwd=tmp_path, environment=seen)
    assert done.returncode == 0
    reason = "plugin 'cracked' of cracked 1.0 is not available: RuntimeError: no such chip"
    assert done.stderr.splitlines() == [f"warning: {reason}"]


def test_a_misspelt_hook_is_one_warning(install, tmp_path):
    code = "from spectok import hookimpl\n@hookimpl\ndef spectok_tokenizer(): return {}\n"
    done = script("--version", cwd=tmp_path, environment=install("wrong", code))
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert "plugin 'wrong' of wrong 1.0 is not available: it has a wrong hook" in done.stderr
    assert "did you mean 'spectok_tokenizers'" in done.stderr


def test_a_plugin_adds_commands_and_recipes(install, tmp_path):
    (tmp_path / "more" / "tokenizers").mkdir(parents=True)
    (tmp_path / "more" / "tokenizers" / "mine.yaml").write_text("# Mine.\ntokenizer: qgvae\n")
    code = f"""
from pathlib import Path
from spectok import hookimpl

@hookimpl
def spectok_recipes():
    return Path({str(tmp_path / "more")!r})

@hookimpl
def spectok_commands(app, train):
    @app.command()
    def hello():
        print("hello", end="")

    @train.command("qgvae")
    def special(words: list[str]):
        print("special", *words, end="")
"""
    seen = install("extra", code)
    assert script("hello", cwd=tmp_path, environment=seen).stdout == "hello"
    # A command of that name wins over the tokenizer of that name.
    done = script("train", "qgvae", "x=1", cwd=tmp_path, environment=seen)
    assert done.stdout == "special x=1"
    done = script("list", "recipes", cwd=tmp_path, environment=seen)
    assert "tokenizers/mine " in done.stdout


# Lists.


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tokenizers", "qgvae"),
        ("quantizers", "voronoi"),
        ("priors", "gpt"),
        ("datasets", "digits"),
        ("recipes", "tokenizers/qgvae/digits"),
        ("plugins", "spectok"),
    ],
)
def test_list(run, kind, name):
    status, out, err = run("list", kind)
    assert (status, err) == (0, "")
    assert any(line.split()[0] == name for line in out.splitlines())
    assert out.splitlines()[-1].startswith("next: spectok ")
    status, out, err = run("list", kind, "--json")
    assert (status, err) == (0, "")
    assert name in [row["name"] for row in json.loads(out)]


def test_the_command_that_list_names_next_is_one(run):
    _, out, _ = run("list", "tokenizers")
    assert out.splitlines()[-1] == f"next: spectok train {list_tokenizers()[0]}"


# Training.


def test_training_leaves_a_model_and_names_what_comes_next(run, trained, tmp_path):
    folder = tmp_path / "again"
    recipe = trained["qgvae"] / "recipe.yaml"
    status, out, err = run("train", recipe, "--output", folder, "train.steps=2")
    assert (status, err) == (0, "")
    assert load_tokenizer(folder / "model").token_spec.num_tokens == 8
    assert out.splitlines()[-2:] == [
        f"next: spectok reconstruct {folder}/model IMAGE --out grid.png",
        f"  or: spectok train prior --tokenizer {folder}/model",
    ]


def test_a_run_is_named_after_recipe_and_data(run, pictures):
    assert run("train", "smoke/vqvae", "train.steps=1")[0] == 0
    assert Path("runs/smoke-vqvae-digits/model").is_dir()
    status, _, err = run("train", "smoke/vqvae", "train.steps=1", "--data", pictures)
    assert (status, err) == (0, "")
    assert Path("runs/smoke-vqvae-pictures/model").is_dir()


def test_options_may_come_first(run):
    status, _, err = run(
        "train", "--data", "digits", "--output", "x", "smoke/vqvae", "train.steps=1"
    )
    assert (status, err) == (0, "")


def test_a_finished_run_is_not_overwritten(refused, run, trained):
    weights = trained["vqvae"] / "model" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    recipe = trained["vqvae"] / "recipe.yaml"
    line = refused("train", recipe)
    assert line.startswith(f"{trained['vqvae']} holds a finished run; give another --output, or")
    assert weights.read_bytes() == before


def test_a_finished_run_can_be_trained_further(run, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained["vqvae"], folder)
    words = ["train", folder / "recipe.yaml", "--output", folder, "train.steps=6"]
    status, out, err = run(*words, "--resume")
    assert (status, err) == (0, "")
    assert "trained 6 steps" in out
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6


@pytest.mark.parametrize("as_before", [False, True], ids=["now", "written-by-0.1"])
def test_the_recipe_of_a_run_means_its_own_folder(run, tmp_path, as_before):
    status, _, err = run("train", "smoke/vqvae", "--output", "runs/m1", "train.steps=3")
    assert (status, err) == (0, "")
    recipe = tmp_path / "runs" / "m1" / "recipe.yaml"
    assert "output" not in recipe.read_text()
    if as_before:
        recipe.write_text(recipe.read_text() + "output: runs/m1\n")
    shutil.copytree("runs/m1", "runs/m2")
    assert run("train", "runs/m2/recipe.yaml", "train.steps=5", "--resume")[0] == 0
    shutil.move("runs/m2", "elsewhere")
    assert run("train", "elsewhere/recipe.yaml", "train.steps=7", "--resume")[0] == 0
    assert not Path("runs/m2").exists()
    last = [
        sorted(Path(folder, "checkpoints").iterdir())[-1].name
        for folder in ("runs/m1", "elsewhere")
    ]
    assert last == ["step-00000003", "step-00000007"]
    status, _, err = run("train", "elsewhere/recipe.yaml", "output=runs/m3", "train.steps=2")
    assert (status, Path("runs/m3/model").is_dir()) == (0, True)


@pytest.mark.skipif("vqvae/mnist" not in list_models(), reason="no trained models are installed")
def test_a_trained_model_is_no_run_to_resume(refused):
    assert "vqvae/mnist is a trained model that is installed, not a run" in refused(
        "resume", "vqvae/mnist"
    )


def test_resume_takes_a_word_or_none(run, refused):
    words = ["train", "smoke/vqvae", "--output", "m"]
    assert "m holds no checkpoint to resume from" in refused(*words, "--resume", "train.steps=2")
    assert "'x' is not one of 'always', 'auto'" in refused(*words, "--resume=x")
    assert run(*words, "--resume", "auto", "train.steps=2")[0] == 0
    assert "trained 3 steps" in run(*words, "--resume=auto", "train.steps=3")[1]
    assert "trained 4 steps" in run(*words, "--resume", "train.steps=4")[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_says_how_to_go_on(fork, tmp_path, number, status):
    log, err = tmp_path / "my run" / "log.jsonl", tmp_path / "err"

    def command(words):
        os.chdir(tmp_path)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY), 1)
        with err.open("w") as sys.stderr:
            main(words)

    words = [
        "train",
        "smoke/vqvae",
        "--output",
        "my run",
        "train.steps=100000",
        "train.log_every=1",
        "train.save_every=100000",
    ]
    process = fork(command, words)
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    saved = tmp_path / "my run" / "checkpoints"
    assert [path.name for path in saved.iterdir()] == [f"step-{last:08d}"]
    assert err.read_text().split("\n") == [
        "",
        "interrupted",
        "continue from the last checkpoint with: spectok train smoke/vqvae --output 'my run' "
        "train.steps=100000 train.log_every=1 train.save_every=100000 --resume",
        "",
    ]


def test_a_run_that_is_stopped_before_its_first_step_says_how_to_go_on(fork, tmp_path, monkeypatch):
    err = tmp_path / "err"

    def command():
        monkeypatch.setattr("spectok.training.tokenizer.build", stop)
        with err.open("w") as sys.stderr:
            main(["train", "--resume=auto", "smoke/vqvae", "--output", str(tmp_path / "run")])

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    process = fork(command)
    process.join(60)
    assert process.exitcode == 143
    told = f"go on with: spectok train smoke/vqvae --output {tmp_path}/run --resume auto"
    assert err.read_text().splitlines()[1:] == ["interrupted", told]


# Using a model.


def test_info(run, trained):
    status, out, err = run("info", trained["qgvae"], "--json")
    facts = json.loads(out)
    assert (status, err) == (0, "")
    assert (facts["tokens"], facts["bits_per_image"]) == (8, 32.0)
    assert facts["levels"][0]["codebook"] == "position"
    _, out, _ = run("info", trained["qgvae"] / "model")
    assert "8 tokens of 16 values (position, 8 codebooks)" in out
    assert run("info", "vqvae")[1].splitlines()[-1] == "next: spectok train vqvae"


@pytest.mark.parametrize("name", ["tokens.npz", "tokens.json"])
def test_tokens_and_back(run, trained, pictures, name):
    status, out, err = run("encode", trained["qgvae"], pictures, "--out", name)
    assert status == 0
    assert err == "note: 1 of 3 images resized and cropped to 16×16 grey\n"
    assert out.splitlines()[0] == f"3 images, 8 tokens and 32 bits each: {name}"
    following = out.splitlines()[1].removeprefix("next: spectok ").split()
    status, out, err = run(*following)
    assert (status, err) == (0, "")
    decoded = sorted(path.name for path in Path("decoded").iterdir())
    assert decoded == ["a-2.png", "a.png", "b.png"]
    assert size_of("decoded/a.png") == (16, 16)


def test_decoded_images_are_those_of_the_model(run, trained, pictures):
    import torch

    from spectok.data.files import load_image
    from spectok.images import to_pil

    run("encode", trained["qgvae"], pictures / "a.png", "--out", "tokens.npz")
    run("decode", trained["qgvae"], "tokens.npz", "--out", "decoded")
    tokenizer = load_tokenizer(trained["qgvae"] / "model")
    with torch.no_grad():
        images = load_image(pictures / "a.png", tokenizer.image_shape)[None]
        expected = to_pil(tokenizer.decode(tokenizer.encode(images))[0])
    with Image.open("decoded/a.png") as decoded:
        assert np.array_equal(np.asarray(expected), np.asarray(decoded))


def test_reconstruct_draws_originals_above_reconstructions(run, trained, pictures):
    status, out, err = run("reconstruct", trained["vqvae"], pictures, "--out", "deep/grid.png")
    assert status == 0
    assert "PSNR" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("next: spectok encode ")
    width, height = size_of("deep/grid.png")
    assert width > height > 2 * 64, "3 columns and 2 rows of enlarged images"
    _, _, err = run("reconstruct", trained["vqvae"], pictures, "--out", "grid.png", "--limit", 1)
    assert err == "note: showing the first 1 of 3 images; --limit shows more\n"
    assert size_of("grid.png")[0] < width


def test_changes_names_the_tokens_that_an_edit_changes(run, refused, trained, pictures):
    before = pictures / "a.png"
    pixels = np.array(Image.open(before))
    pixels[:3, :4] = 255 - pixels[:3, :4] // 2
    Image.fromarray(pixels).save(pictures / "edited.png")
    model = trained["vqvae"]
    status, out, _ = run("changes", model, before, pictures / "edited.png", "--out", "changes.png")
    first, second, third = out.splitlines()
    assert status == 0
    assert third == "before, after, difference; below, the reconstructions: changes.png"
    width, height = size_of("changes.png")
    assert width > height
    _, out, _ = run("changes", model, before, pictures / "edited.png", "--json")
    facts = json.loads(out)
    import torch

    from spectok.data.files import load_image

    tokenizer = load_tokenizer(model / "model")
    with torch.no_grad():
        both = [load_image(p, tokenizer.image_shape) for p in (before, pictures / "edited.png")]
        one, other = tokenizer.encode(torch.stack(both))
    places = (one != other).nonzero().flatten().tolist()
    assert facts["levels"] == [{"tokens": 16, "changed": len(places), "positions": places}]
    assert facts["changed_pixels"] == (np.array(Image.open(before)) != pixels).sum()
    assert first.startswith(f"{len(places)} of 16 tokens changed, {facts['changed_pixels']} of 256")
    shown = ", ".join(map(str, places)) or "no place"
    assert second == f"{len(places)} of 16 at {shown}"
    _, out, _ = run("changes", model, before, before, "--json")
    same = json.loads(out)
    assert same["changed_tokens"] == same["changed_pixels"] == same["changed_reconstruction"] == 0
    assert "gone.png" in refused("changes", model, before, "gone.png")
    assert "picture.txt" in refused("changes", model, before, before, "--out", "picture.txt")


# Mistakes.


def test_mistakes_in_what_to_train(refused, tmp_path):
    assert refused("train", "qgvea").startswith("unknown tokenizer 'qgvea' (did you mean 'qgvae'?)")
    assert "did you mean 'image_size'" in refused("train", "qgvae", "tokenizer.imagesize=16")
    assert refused("train", "qgvae", "train.steps=x").startswith("train.steps: Input should be a")
    assert refused("train", "qgvae", "train.batch_size=0").startswith("train.batch_size: Input")
    assert refused("train", "mine.yaml").startswith("no recipe file: mine.yaml does not exist")
    line = refused("train", "smoke/vqvae", "tokenizer.image_size=18", "--output", "x")
    assert "image_size 18 is not divisible by downsample_factor 4" in line


def test_mistakes_in_data(refused, pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (pictures / "torn.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    words = ["train", "smoke/vqvae", "--output", "x", "--data"]
    assert str(empty) in refused(*words, empty)
    assert "torn.png" in refused(*words, pictures)
    assert refused(*words, "digit").startswith("unknown dataset 'digit' (did you mean 'digits'?)")
    assert "not/here" in refused(*words, "./not/here")


def test_several_problems_are_a_line_each(run):
    status, _, err = run("train", "qgvae", "train.steps=x", "data.nam=y")
    assert status == 2
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["error", "data.nam"],
        ["error", "train.steps"],
    ]


def test_mistakes_in_images(refused, trained, pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = pictures / "torn.png"
    torn.write_bytes((pictures / "b.png").read_bytes()[:200])
    model = trained["vqvae"]
    assert refused("encode", model, empty, "--out", "t.npz").startswith(f"{empty} holds no images")
    assert str(torn) in refused("reconstruct", model, pictures, "--out", "grid.png")
    assert refused("encode", model, "no.png", "--out", "t.npz").startswith("no.png does not exist")
    assert "grid.txt" in refused("reconstruct", model, pictures, "--out", "grid.txt")
    assert "tokens.txt" in refused("encode", model, pictures, "--out", "tokens.txt")
    assert not Path("grid.png").exists()


def test_mistakes_in_models(refused, trained, pictures, tmp_path):
    def damaged(change):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained["qgvae"] / "model", folder)
        change(folder)
        return folder

    def truncate(folder):
        weights = folder / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:3000])

    def rename(folder):
        config = folder / "config.json"
        config.write_text(config.read_text().replace("QGVAE", "VQVAE"))

    def remove(folder):
        (folder / "config.json").unlink()

    assert "untrained tokenizer" in refused("encode", "qgvae", pictures, "--out", "t.npz")
    assert refused("info", "nothing").startswith("unknown tokenizer 'nothing'")
    assert "./no/thing does not exist" in refused("info", "./no/thing")
    for change in (truncate, rename, remove):
        folder = damaged(change)
        assert str(folder) in refused("info", folder), change.__name__


def test_mistakes_in_tokens(refused, run, trained, pictures):
    run("encode", trained["qgvae"], pictures / "a.png", "--out", "t.json")
    content = json.loads(Path("t.json").read_text())

    def decode(indices, *words, model="qgvae"):
        Path("t.json").write_text(json.dumps(content | {"indices": indices}))
        return refused("decode", trained[model], "t.json", "--out", "decoded", *words)

    good = content["indices"][0]
    assert run("decode", trained["qgvae"], "t.json", "--out", "here")[0] == 0
    assert "here/a.png would be overwritten" in refused(
        "decode", trained["qgvae"], "t.json", "--out", "here"
    )
    assert "place 2" in decode([[*good[:2], 16, *good[3:]]])
    assert "is outside 0..15" in decode([[*good[:2], -1, *good[3:]]])
    assert "must be integers of shape (1, 8)" in decode([[0.5] * 8])
    assert "another layout" in decode([good], model="vqvae")
    assert "num_tokens 3 does not decode" in decode([good], "--num-tokens", 3)
    words = ["decode", trained["qgvae"]]
    assert refused(*words, "no.npz", "--out", "d").startswith("no.npz does not exist")
    Path("bad.npz").write_bytes(b"PK\x03\x04 torn")
    assert refused(*words, "bad.npz", "--out", "d").startswith("bad.npz cannot be read")
    Path("bad.json").write_text("[]")
    assert refused(*words, "bad.json", "--out", "d").startswith("bad.json is not a file of tokens")


def test_no_image_is_written_over_by_a_picture_made_of_it(refused, trained, pictures, tmp_path):
    own, link = pictures / "a.png", tmp_path / "link.png"
    before = own.read_bytes()
    link.symlink_to(own)
    for out in (own, link):
        for words in (["reconstruct", trained["qgvae"], pictures], ["changes", trained["qgvae"]]):
            images = [] if len(words) > 2 else [pictures / "b.png", own]
            line = refused(*words, *images, "--out", out)
            assert line == f"--out {out} is one of the images to read; give another name"
    assert own.read_bytes() == before


@pytest.mark.parametrize("name", ["t.npz", "t.json"])
def test_tokens_of_another_tokenizer_are_refused_though_their_layout_is_equal(
    refused, run, trained, pictures, tmp_path, name
):
    import torch

    other = load_tokenizer(trained["qgvae"])
    with torch.no_grad():
        next(other.decoder.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    run("encode", trained["qgvae"], pictures / "a.png", "--out", name)
    line = refused("decode", tmp_path / "other", name, "--out", "decoded")
    assert line.startswith(f"{name} holds tokens of another tokenizer (weights '")
    assert not Path("decoded").exists()
    shutil.copytree(trained["qgvae"], tmp_path / "moved")
    assert run("decode", tmp_path / "moved", name, "--out", "decoded")[0] == 0

    tiles = ["--tile", "8"] if name == "t.npz" else ["--image-size", "16"]
    run("encode", trained["vqvae"], pictures / "b.png", "--out", name, *tiles)
    assert run("decode", trained["vqvae"], name, "--out", "tiles")[0] == 0


def test_tokens_whose_file_names_no_tokenizer_are_taken(run, trained, pictures):
    run("encode", trained["qgvae"], pictures / "a.png", "--out", "t.json")
    content = json.loads(Path("t.json").read_text())
    del content["weights"]
    Path("t.json").write_text(json.dumps(content))
    assert run("decode", trained["qgvae"], "t.json", "--out", "decoded")[0] == 0


def test_tokens_are_never_unpickled(refused, trained):
    class Bomb:
        def __reduce__(self):
            return (Path("exploded").touch, ())

    np.savez("bomb.npz", indices=np.array([Bomb()], dtype=object), files=np.array(["a"]))
    line = refused("decode", trained["qgvae"], "bomb.npz", "--out", "decoded")
    assert line.startswith("bomb.npz cannot be read as npz")
    assert not Path("exploded").exists()


def test_a_place_that_cannot_be_written_is_one_line(refused, trained, pictures):
    Path("file").touch()
    line = refused("encode", trained["qgvae"], pictures / "a.png", "--out", "file/t.npz")
    assert line.startswith("file")


def test_a_key_and_a_data_set_mean_the_recipe_made_for_both():
    from spectok.cli.train import recipe_for

    assert recipe_for("qgvae", None) == "tokenizers/qgvae/digits"
    assert recipe_for("qgvae", "mnist") == "tokenizers/qgvae/mnist"
    assert recipe_for("qgvae", "photos") is None
    assert recipe_for("qgvae", "./folder") is None
    assert recipe_for("qgvae/cifar10", None) is None
    assert recipe_for("smoke/qgvae", "digits") is None


@pytest.mark.parametrize("images", ["faces/*.tar", "faces/{000..010}.tar", "./faces"])
def test_a_run_on_ones_own_images_is_named_after_them(images):
    from spectok.cli.train import default_output
    from spectok.data.choice import data_override
    from spectok.training.recipe import load_tokenizer_recipe

    recipe = load_tokenizer_recipe("qgvae", [data_override(images)])
    assert default_output("qgvae", recipe) == Path("runs/qgvae-faces")


@pytest.mark.parametrize("place", ["pipe.png", "folder"])
def test_a_pipe_among_the_images_is_refused_not_read(refused, trained, place):
    Path("folder").mkdir()
    os.mkfifo("pipe.png")
    os.mkfifo("folder/a.png")
    line = refused("encode", trained["qgvae"], place, "--out", "t.npz")
    assert "is a device or pipe, not a file" in line


def test_names_that_repeat_a_number_keep_all_images():
    assert distinct_stems(["a.png", "b/a.png", "a-2.png", "c/a.png"]) == ["a", "a-3", "a-2", "a-4"]


def test_names_that_no_terminal_should_print_are_escaped(refused, trained):
    name = "a\nerror: all is well\x1b[2J.npz"
    line = refused("decode", trained["qgvae"], name, "--out", "d")
    assert (
        line == "a\\nerror: all is well\\x1b[2J.npz does not exist; 'spectok encode' writes such "
        "a file"
    )
