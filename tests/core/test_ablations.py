"""The program of small trainings: its files, and which of their runs it trains."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import spectok
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError, TrainingError, UnknownNameError
from spectok.evaluation import evaluate_reconstruction
from spectok.recipes.yaml12 import dump_yaml

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "benchmarks" / "ablations").glob("*.yaml"))
SMALL = {
    "tokenizer.channels": 8,
    "tokenizer.num_blocks": 0,
    "tokenizer.codebook_dim": 4,
    "tokenizer.codebook_size": 8,
    "data.limit": 64,
    "train.steps": 2,
    "train.batch_size": 8,
    "train.warmup_steps": 0,
}
TOKENS, BITS = "tokenizer.num_tokens", "tokenizer.codebook_size"
GLOBAL = {
    TOKENS: 4,
    "tokenizer.codebook_dim": 4,
    "tokenizer.num_heads": 4,
    "tokenizer.max_channels": 16,
}


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch, tmp_path):
    """Import as a script does, and keep runs away from the checkout."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def module(name="ablations"):
    return importlib.import_module(name)


def write(content, name="mine"):
    """Write a file; by default two small variants on digits, measured on 32 of them."""
    base = {"about": "?", "claims": ["Q1"], "recipe": "vqvae/digits", "common": SMALL}
    base |= {"seeds": 1, "held_out": 32}
    variants = {"vq": {"settings": {"tokenizer.quantizer": {"name": "vq"}}}, "ema": {}}
    text = dump_yaml(base | {"variants": variants} | content)
    Path(f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def run(path, *words):
    """Run the program; return its report, and when each finished model was written."""
    module().main([path, "--results", "results", *words])
    report = json.loads(Path("results", f"{Path(path).stem}.json").read_text())
    models = Path("runs").rglob("model/config.json")
    return report, {str(path): path.stat().st_mtime_ns for path in models}


# -- the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_on_equal_terms_and_serves_claims_that_there_are(name):
    _, ablation = module("ablation_files").load_ablation(name)
    claims = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert set(ablation.claims) <= set(re.findall(r"^\| (\w\d+) \|", claims, re.MULTILINE))
    assert len(ablation.variants) >= 3
    assert ablation.seeds == 3


def test_the_files_are_listed(capsys):
    module().main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == FILES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": {"a": {}, "b": {"settings": {BITS: 16}}}}, "bits per image differ"),
        ({"variants": {"a": {}, "b": {"settings": {"train.steps": 3}}}}, "steps differ"),
        ({"variants": {"a": {}, "b": {"settings": {"data.limit": 8}}}}, "images differ"),
        ({"variants": {"a b": {}, "a, b": {}}}, "same folder as 'a, b'"),
        ({"variants": {"a": {"settings": {"tokenizer.chanels": 8}}}}, "variants.a: tokenizer.chan"),
        ({"variants": {"a": {"colour": 1}}}, "variants.a.colour: unknown key"),
        ({"claims": []}, "claims"),
    ],
)
def test_files_that_compare_unlike_things_are_refused(content, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        module("ablation_files").load_ablation(write(content))


def test_groups_may_spend_other_bits():
    variants = {"a": {}, "b": {"settings": {BITS: 16}, "group": "larger"}}
    module("ablation_files").load_ablation(write({"variants": variants}))


def test_unknown_names_are_refused_before_anything_is_trained():
    with pytest.raises(UnknownNameError, match="did you mean 'qgvae_tokens'"):
        module().main(["qgvae_token"])
    with pytest.raises(ConfigError, match=r"no variant 'em' \(did you mean 'ema'"):
        module().main([write({}), "--only", "em"])
    with pytest.raises(ConfigError, match="--seeds 0 must be at least 1"):
        module().main([write({}), "--seeds", "0"])
    assert not Path("runs").exists()


# -- runs ------------------------------------------------------------------------------------------


def test_a_finished_run_is_kept_and_one_of_another_recipe_is_trained_anew():
    report, models = run(write({}))
    assert set(report["variants"]) == {"vq", "ema"}
    assert report["protocol"]["num_images"] == 32
    assert report["steps"] == 2
    again, same = run(write({}))
    assert same == models
    assert again["variants"] == report["variants"]

    changed = {"vq": {"settings": {"tokenizer.quantizer": {"name": "cvq"}}}, "ema": {}}
    other, after = run(write({"variants": changed}))
    key = {name: next(path for path in models if f"/{name}/seed-0/" in path) for name in changed}
    assert after[key["ema"]] == models[key["ema"]]
    assert after[key["vq"]] > models[key["vq"]]
    assert sum("seed-0.replaced" in path for path in after) == 1
    assert other["variants"]["ema"] == report["variants"]["ema"]
    assert other["variants"]["vq"]["seeds"] != report["variants"]["vq"]["seeds"]


def test_an_unfinished_run_goes_on_from_its_checkpoint():
    report, _ = run(write({}))
    folder = Path("runs/ablations/mine/ema/seed-0")
    for name in ("model/config.json", "measured.json"):
        (folder / name).unlink()
    log = (folder / "log.jsonl").read_text()
    again, _ = run(write({}))
    assert (folder / "log.jsonl").read_text() == log  # its two steps were not taken again
    ours, theirs = (r["variants"]["ema"]["seeds"]["0"] for r in (again, report))
    assert ours["psnr"] == theirs["psnr"]


def test_seeds_are_added_summarised_and_printed(capsys):
    path = write({"measures": ["bands"]})
    run(path, "--only", "ema")
    report, _ = run(path, "--only", "ema", "--seeds", "2")
    row = report["variants"]["ema"]
    values = [row["seeds"][seed]["psnr"] for seed in ("0", "1")]
    assert values[0] != values[1]
    assert row["mean"]["psnr"] == pytest.approx(sum(values) / 2, rel=1e-5)
    assert row["spread"]["psnr"] == pytest.approx(abs(values[0] - values[1]), rel=1e-4)
    assert row["mean"]["bits_per_image"] == 48
    assert "vq" not in report["variants"]
    assert set(run(path, "--only", "ema", "--seeds", "1")[0]["variants"]["ema"]["seeds"]) == {*"01"}
    lines = capsys.readouterr().out.splitlines()
    *_, line = (line for line in lines if line.startswith("| ema |"))
    shown = [row["mean"]["psnr"], row["spread"]["psnr"]]
    assert line.startswith(f"| ema | {shown[0]:.2f} ({shown[1]:.2f}) |")
    assert line.endswith("| 2 |")
    assert len({line for line in lines if line.startswith("| error, ")}) >= 5


@pytest.mark.slow
def test_results_of_runs_that_are_gone_stay_while_their_variant_does():
    report, _ = run(write({}))
    Path("runs").rename("elsewhere")
    after, _ = run(write({}), "--only", "ema")
    assert after["variants"]["vq"] == report["variants"]["vq"]
    changed = {"vq": {"settings": {"tokenizer.quantizer": {"name": "cvq"}}}, "ema": {}}
    assert "vq" not in run(write({"variants": changed}), "--only", "ema")[0]["variants"]


def test_numbers_that_a_report_would_lose_stay_beside_it(capsys):
    path = write({"seeds": 2})
    report, _ = run(path)
    Path("runs").rename("elsewhere")
    after, _ = run(path, "--only", "ema", "--seeds", "1")
    assert list(after["variants"]["ema"]["seeds"]) == ["0"]
    assert json.loads(Path("results/mine.earlier.json").read_text()) == report
    assert capsys.readouterr().err.count("loses numbers whose runs are gone or differ") == 1
    run(path, "--only", "ema")
    assert json.loads(Path("results/mine.earlier.json").read_text()) == report


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        '"x"',
        "{}",
        '{"variants": []}',
        '{"variants": {"vq": 3}}',
        '{"variants": {}}',
        '{"protocol": {"id": "1"}, "variants": {"vq": {"seeds": {"0": {}}}}}',
    ],
)
def test_what_is_no_report_is_refused_before_anything_is_trained(content):
    Path("results").mkdir()
    Path("results/mine.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"mine\.json is no report of this program; move it"):
        run(write({}))
    assert Path("results/mine.json").read_text() == content
    assert not Path("runs").exists()


def test_trials_are_kept_apart():
    module().main([write({}), "--results", "results", "--steps", "1", "--only", "ema"])
    assert not Path("results").exists()
    trial = json.loads(Path("runs/ablations/mine/steps-1/mine.json").read_text())
    assert trial["steps"] == 1


def test_a_family_shares_the_rate_of_the_least_training_error():
    variants = {"ema": {}, "cvq": {"settings": {"tokenizer.quantizer": {"name": "cvq"}}}}
    report, models = run(write({"rates": [1e-4, 3e-2], "variants": variants}))
    errors = report["training_errors_of_rates"]["vqvae"]
    best = float(min(errors, key=errors.get))
    assert errors["0.03"] != errors["0.0001"]
    assert {row["learning_rate"] for row in report["variants"].values()} == {best}
    assert len(models) == 3  # the family's first variant at both rates, the other one at the best


@pytest.mark.slow
def test_a_rate_that_diverges_is_not_chosen_and_a_variant_that_does_stops_no_other():
    diverging = {"settings": {"train.learning_rate": 1000.0, "tokenizer.num_blocks": 4}}
    report, _ = run(write({"rates": [1e-3, 1000.0], "variants": {"deep": DEEP}}, "rates"))
    assert report["training_errors_of_rates"]["vqvae"]["1000"] is None
    assert report["variants"]["deep"]["learning_rate"] == 1e-3
    with pytest.raises(TrainingError, match=r"^bad, seed 0: .*not finite"):
        run(write({"variants": {"bad": diverging, "ema": {}}}))
    report = json.loads(Path("results/mine.json").read_text())
    assert set(report["variants"]) == {"ema"}


DEEP = {"settings": {"tokenizer.num_blocks": 4}}


# -- starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_codebooks", [1, None])
def test_codes_start_on_the_data_and_other_weights_as_they_were(num_codebooks, tmp_path):
    runs, training = module("ablation_runs"), module("ablation_files")
    options = {"tokenizer.quantizer": {"name": "voronoi", "num_codebooks": num_codebooks}}
    ablation = {"recipe": "qgvae/digits", "common": SMALL | GLOBAL | options}
    del ablation["common"]["tokenizer.channels"], ablation["common"]["tokenizer.num_blocks"]
    _, loaded = training.load_ablation(write(ablation | {"variants": {"a": {}}}))
    recipe, models = loaded.recipe_of("a", {}), {}
    for start in ("data", "kmeans"):
        runs.write_start(recipe, start, str(tmp_path / start))
        models[start] = spectok.load_tokenizer(tmp_path / start)
    plain = runs.build(recipe.tokenizer, recipe.seed).eval()
    images = runs.stack(build_dataset(recipe.data, train=False), range(64))
    with torch.no_grad():
        z = plain.token_space.to_vectors(plain.encode_latents(images))
    vectors, error = plain.quantizer.by_codebook(z), {}
    for start, model in models.items():
        differing = [k for k, v in plain.state_dict().items() if (model.state_dict()[k] != v).any()]
        assert differing == ["quantizer.codebook"]
        distance = torch.cdist(model.quantizer.codebook.detach(), vectors)  # (G, K, P)
        error[start] = distance.square().amin(1).mean().item()
        if start == "data":
            assert distance.amin(2).max() < 1e-3
    assert error["kmeans"] < error["data"]


@pytest.mark.slow
def test_a_start_is_what_training_begins_with():
    def with_start(start):
        common = SMALL | GLOBAL | {"tokenizer.quantizer.num_codebooks": 4}
        ablation = {"recipe": "qgvae/digits", "common": common, "variants": {"a": start}}
        del ablation["common"]["tokenizer.channels"], ablation["common"]["tokenizer.num_blocks"]
        return run(write(ablation))[0]["variants"]["a"]

    rows = [with_start(start) for start in ({}, {"start": "data"}, {"start": "kmeans"})]
    assert [row["start"] for row in rows] == ["random", "data", "kmeans"]
    assert len({row["mean"]["psnr"] for row in rows}) == 3  # each was trained anew


def test_a_start_needs_as_many_vectors_as_codes(tmp_path):
    training, runs = module("ablation_files"), module("ablation_runs")
    common = SMALL | {"data.limit": 3, BITS: 64}
    _, loaded = training.load_ablation(write({"common": common, "variants": {"a": {}}}))
    with pytest.raises(ConfigError, match="needs 64 vectors per codebook, and 3 images give 48"):
        runs.write_start(loaded.recipe_of("a", {}), "data", str(tmp_path / "start"))


# -- measures --------------------------------------------------------------------------------------


def bands(images, output, sizes=(8,)):
    metric = module("spectra").BandErrors()
    for size in sizes:
        for start in range(0, len(images), size):
            metric.add(images[start : start + size], output[start : start + size], torch.empty(0))
    return metric.result()


def test_bands_of_an_equal_image_have_no_error_and_of_a_black_one_all_of_it():
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    equal, black = bands(images, images), bands(images, torch.full_like(images, -1))
    for name, value in equal.items():
        assert value == pytest.approx(1 if name.startswith("energy") else 0, abs=1e-6)
    for name, value in black.items():
        if name.startswith(("error", "energy")):
            assert value == pytest.approx(float(name.startswith("error")), abs=1e-6)


def test_a_wave_that_is_lost_is_missed_in_its_own_ring():
    places = torch.arange(32)
    wave = 0.5 * torch.cos(2 * torch.pi * places * 10 / 32)  # 0.3125 cycles per pixel
    grey = torch.randn(8, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).clamp(-0.4, 0.4)
    images = grey + wave
    found = bands(images, grey)
    errors = {name: value for name, value in found.items() if name.startswith("error")}
    assert max(errors, key=errors.get) == "error, 0.25 to 0.375 cycles"
    assert errors["error, 0.25 to 0.375 cycles"] > 0.5
    assert errors["error, 0 to 0.0625 cycles"] < 0.01


def test_bands_do_not_depend_on_the_batches():
    images, output = torch.rand(2, 6, 1, 16, 16) * 2 - 1
    assert bands(images, output, (6,)) == pytest.approx(bands(images, output, (4,)), rel=1e-5)


def test_prefixes_are_what_an_ordered_model_decodes():
    runs = module("ablation_runs")
    options = {"image_size": 16, "in_channels": 1, "codebook_size": 8, "prefix_probability": 0.3}
    sizes = {"num_tokens": 6, "codebook_dim": 4, "num_heads": 3, "max_channels": 16}
    model = spectok.load_tokenizer("qgvae", **options, **sizes).eval()
    data = build_dataset(DataConfig(name="digits", image_size=16, split="test", limit=40))
    found = runs.prefix_psnr(model, data)
    assert list(found) == [f"first {k}{end}" for k in (1, 2, 4, 6) for end in ENDS]
    whole = evaluate_reconstruction(model, data, metrics=("psnr",))["psnr"]
    assert found["first 6"] == pytest.approx(whole, abs=1e-4)
    assert found["first 6, others at their mean"] == pytest.approx(whole, abs=1e-4)
    images = runs.stack(data, range(40))
    with torch.no_grad():
        decoded = model.decode(model.encode(images), num_tokens=2)
    assert found["first 2"] == pytest.approx(float(runs.psnr(images, decoded).mean()), abs=1e-4)


def test_maps_are_alike_or_orthogonal(monkeypatch):
    runs = module("ablation_runs")
    data = build_dataset(DataConfig(name="digits", limit=8, image_size=8))
    waves = torch.outer(torch.arange(1.0, 9), torch.ones(1)) * torch.eye(16)[:8].sum(0)  # (8, 16)

    class Model:
        def __init__(self, maps):
            self.maps = maps

        def encode_latents(self, images):
            return self.maps.expand(len(images), -1, -1).unflatten(2, (4, 4))

    alike = runs.map_cosines(Model(waves + 5), data)  # one map, eight times as strong at the end
    assert alike == pytest.approx({"cosine of first 8 maps": 1, "cosine of all maps": 1})
    angles = torch.arange(16) * 2 * torch.pi / 16
    apart = torch.cat([torch.stack([(k * angles).sin(), (k * angles).cos()]) for k in range(1, 5)])
    found = runs.map_cosines(Model(apart), data)
    assert found == pytest.approx(dict.fromkeys(found, 0), abs=1e-5)


ENDS = ("", ", others at their mean")


def test_the_program_ends_with_one_line_where_its_input_is_wrong(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablations.py", "nothing_such"])
    with pytest.raises(SystemExit, match=r"^error: unknown ablation 'nothing_such'[^\n]*$"):
        runpy.run_path(str(ROOT / "benchmarks" / "ablations.py"), run_name="__main__")
