"""``spectok doctor``: each planted fault is found and named, and a healthy model has none."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectok import Level, TokenSpec, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.evaluation import evaluate
from spectok.evaluation.codebooks import UsageByPosition
from spectok.evaluation.codes import check_children, check_counts, check_norms, check_perplexity
from spectok.evaluation.diagnosis import SETTING, Diagnosis, Finding, graded
from spectok.evaluation.doctor import examine, settings_of
from spectok.evaluation.numbers import record_numbers
from spectok.evaluation.stored import check_rounding, check_subnormal, rounded_to
from spectok.loading import load_trained
from spectok.metrics import count_codes, split_by_codebook

WEIGHTS = "diffusion_pytorch_model.safetensors"
CODES, FREQUENCY = "quantizer.codebook", "quantizer.frequency"
SIZE = 16  # codes


@pytest.fixture(scope="module")
def dataset():
    return build_dataset(DataConfig(name="photos", split="test", limit=96, image_size=16))


def encoder_vectors(tokenizer, dataset):
    images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
    with torch.no_grad():
        return tokenizer.token_space.to_vectors(tokenizer.encode_latents(images)).flatten(0, 1)


def spread_over(vectors, count):
    """Return well-used codes: the means of a few rounds of k-means, started on the data."""
    codes = vectors[torch.randperm(len(vectors))[:count]].clone()
    for _ in range(20):
        nearest = torch.cdist(vectors, codes).argmin(1)
        for code in range(count):
            if (nearest == code).any():
                codes[code] = vectors[nearest == code].mean(0)
    counts = torch.bincount(torch.cdist(vectors, codes).argmin(1), minlength=count)
    return codes, counts / counts.sum()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, dataset):
    """Save a tokenizer whose codes lie where its vectors are."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("healthy") / "model"
    tokenizer = load_tokenizer(
        "vqvae", image_size=16, channels=8, codebook_size=SIZE, codebook_dim=6, downsample_factor=4
    ).eval()
    codes, frequency = spread_over(encoder_vectors(tokenizer, dataset), SIZE)
    with torch.no_grad():
        tokenizer.quantizer.codebook[0] = codes
        tokenizer.quantizer.frequency[0] = frequency
        tokenizer.quantizer.num_steps.fill_(1000)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spoiled(healthy, tmp_path):
    """Return a function that saves the healthy model with some tensors changed."""

    def spoil(change):
        folder = tmp_path / "spoiled"
        folder.mkdir()
        (folder / "config.json").write_text((healthy / "config.json").read_text())
        state = load_file(healthy / WEIGHTS)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
        return folder

    return spoil


def found_by(diagnosis):
    return {(finding.check, finding.severity) for finding in diagnosis.findings}


def test_a_healthy_model_has_no_finding(healthy, dataset):
    assert examine(healthy).findings == []
    seen = examine(healthy, dataset)
    assert seen.findings == []
    assert {"dead and rare codes", "perplexity", "norms", "twins", "half precision"} <= set(
        seen.checked
    )
    assert set(seen.not_checked) == {"ranks"}


def test_the_log_of_a_run_tells_whether_its_processes_agreed(healthy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(healthy, run / "model")
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "no more than one process" in examine(run).not_checked["ranks"]
    lines = [line | {"processes": 2} for line in lines]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for place in (run, run / "model"):
        found = examine(place)
        assert "ranks" in found.checked
        assert found.findings == []
    lines.append({"step": 3, "processes": 2, "differing": "quantizer.codebook"})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (finding,) = examine(run).findings
    assert (finding.check, finding.place) == ("ranks", "quantizer.codebook")
    assert finding.message == "differed between 2 processes at step 3"


# -- codebooks with one planted fault each ---------------------------------------------------------


def test_dead_codes(spoiled, dataset):
    def change(state):
        codes = state[CODES][0]
        centre = codes.mean(0)
        codes[10:] = centre + 5 * (codes - centre).norm(dim=-1).max() * torch.randn(6, 6)
        state[FREQUENCY][0, 10:] = 1e-9

    folder = spoiled(change)
    (finding,) = examine(folder).findings
    assert (finding.check, finding.severity) == ("dead codes", "error")
    assert "37.5 % of 16 codes were never chosen at the end of training" in finding.message
    assert "a smaller tokenizer.codebook_size" in finding.remedy
    assert "revive_below" not in finding.remedy  # it is on already
    seen = examine(folder, dataset)
    assert found_by(seen) == {("dead codes", "error")}
    assert any("on this data" in finding.message for finding in seen.findings)


def test_twins(spoiled):
    def change(state):
        state[CODES][0, 12:] = state[CODES][0, :4] + 1e-6

    (finding,) = examine(spoiled(change)).findings
    assert (finding.check, finding.severity) == ("twins", "error")
    assert finding.message.startswith("4 of 16 codes are copies of another")
    assert "codebook_size" in finding.remedy


def test_a_code_that_went_astray_makes_no_twins(spoiled):
    found = examine(spoiled(lambda state: state[CODES][0, 3].fill_(1e20)))
    (finding,) = found.findings
    assert (finding.check, finding.severity) == ("norms", "warning")
    assert finding.message.startswith(f"1 of {SIZE} codes lie 100 times farther")


def test_remedies_name_only_what_can_be_set(spoiled, tmp_path, dataset):
    def collapse(state):
        state[CODES][0, :] = state[CODES][0, :1]

    (twins,) = examine(spoiled(collapse)).findings
    assert "tokenizer.quantizer.revive_every" in twins.remedy  # vqvae's default quantizer has it
    for number, (quantizer, named) in enumerate(
        {
            "vq": {"tokenizer.codebook_size", "tokenizer.quantizer.commitment_weight"},
            "gumbel": {"tokenizer.codebook_size"},
        }.items()
    ):
        folder = tmp_path / str(number)
        tokenizer = load_tokenizer("vqvae", image_size=16, quantizer=quantizer, codebook_size=SIZE)
        with torch.no_grad():
            tokenizer.quantizer.codebook.copy_(tokenizer.quantizer.codebook[:, :1].clone())
        tokenizer.save_pretrained(folder)
        findings = examine(folder, dataset).findings
        assert {"twins", "dead codes", "perplexity"} <= {finding.check for finding in findings}
        assert all(finding.remedy for finding in findings)
        settings = {name for finding in findings for name in SETTING.findall(finding.remedy)}
        assert settings <= settings_of(tokenizer)
        assert named <= settings | {"tokenizer.quantizer.codebook_weight"}


def test_lengths_say_nothing_where_codes_are_not_compared_with_vectors(tmp_path, dataset):
    for quantizer, is_checked in (("vq", True), ("gumbel", False)):
        torch.manual_seed(0)
        tokenizer = load_tokenizer("vqvae", image_size=16, quantizer=quantizer, codebook_size=SIZE)
        with torch.no_grad():
            tokenizer.quantizer.codebook.mul_(1e3)
        tokenizer.save_pretrained(tmp_path / quantizer)
        found = examine(tmp_path / quantizer, dataset)
        assert ("norms" in {finding.check for finding in found.findings}) == is_checked
        assert ("norms" in found.not_checked) != is_checked


def test_rounded_codes(spoiled):
    def change(state):
        state[CODES] = state[CODES].bfloat16().float()

    (finding,) = examine(spoiled(change)).findings
    assert (finding.check, finding.place) == ("half precision", CODES)
    assert "rounded to bfloat16, 8 significant bits: nearest codes differ" in finding.message
    assert "train.mixed_precision=bf16 keeps float32 weights" in finding.remedy


def test_rounded_weights_that_were_measured_as_they_are(spoiled, dataset):
    def change(state):
        state[CODES] = state[CODES].half().float()

    folder = spoiled(change)
    (before,) = examine(folder).findings
    tokenizer = load_trained(folder)
    result = evaluate(tokenizer, dataset)
    record_numbers(tokenizer, folder, result, DataConfig(name="photos"))
    (after,) = examine(folder).findings
    assert (before.severity, after.severity) == ("warning", "note")
    assert after.message.endswith("the numbers of its card are of the rounded weights")
    state = load_file(folder / WEIGHTS)
    state[CODES] /= 2
    save_file(state, folder / WEIGHTS)
    assert ("half precision", "warning") in found_by(examine(folder))


def test_codes_of_another_length(spoiled, dataset):
    def change(state):
        state[CODES] *= 20

    folder = spoiled(change)
    assert examine(folder).findings == []  # weights alone do not tell
    by_check = {finding.check: finding for finding in examine(folder, dataset).findings}
    assert by_check["norms"].severity == "error"
    assert "times as long as the vectors they stand for" in by_check["norms"].message


# -- damaged weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "1 of"), (float("inf"), "1 infinite")])
def test_numbers_that_are_not_finite(spoiled, value, told):
    def change(state):
        state[CODES][0, 0, 0] = value

    diagnosis = examine(spoiled(change))
    (finding,) = diagnosis.findings
    assert (finding.check, finding.severity, finding.place) == ("not finite", "error", CODES)
    assert told in finding.message
    assert "everything else" in diagnosis.not_checked


def test_subnormal_numbers():
    (finding,) = check_subnormal({"a": torch.tensor([1e-40, 1.0]), "b": torch.zeros(3)})
    assert (finding.check, finding.place) == ("subnormal", "a")
    assert "50.0 % of its numbers" in finding.message


def test_rounding_is_told_from_plain_numbers():
    trained = torch.randn(100)
    assert rounded_to(trained) is None
    assert rounded_to(trained.bfloat16().float()) == "bfloat16"
    assert rounded_to(trained.half().float()) == "float16"
    for plain in (torch.ones(100), torch.arange(100.0), torch.zeros(100), torch.full((99,), 0.1)):
        assert rounded_to(plain) is None
    stored = {"decoder.weight": trained.half(), "encoder.weight": trained.half(), "x": trained}
    (finding,) = check_rounding(stored)
    assert finding.message.startswith("2 tensors of weights are rounded to float16, 11")


# -- usage -----------------------------------------------------------------------------------------


def usage_of(spec, tokens):
    usage, nothing = UsageByPosition(spec), torch.zeros(0)
    usage.add(nothing, nothing, tokens)
    return split_by_codebook(spec, count_codes(spec, tokens)), usage.result()


def test_a_level_is_judged_only_with_enough_tokens():
    spec = TokenSpec((Level((2,), 8),))
    few = torch.zeros(8, 2, dtype=torch.int64)
    assert check_counts(spec, usage_of(spec, few)[0]) == []
    (finding,) = check_counts(spec, usage_of(spec, few.repeat(10, 1))[0])
    assert finding.numbers["dead"] == 7 / 8


def test_rare_codes():
    spec = TokenSpec((Level((1,), 4),))
    tokens = torch.tensor([0] * 500 + [1] * 500 + [2, 3])[:, None]
    (finding,) = check_counts(spec, usage_of(spec, tokens)[0])
    assert (finding.check, finding.severity) == ("rare codes", "warning")
    assert "50.0 % of 4 codes" in finding.message


def test_perplexity_is_compared_with_what_it_could_be():
    spec = TokenSpec((Level((2,), 64), Level((2,), 64)))
    flat, full = torch.zeros(400, 2, dtype=torch.int64), torch.randint(0, 64, (400, 2))
    counts = usage_of(spec, torch.cat([full, flat], 1))
    (finding,) = check_perplexity(spec, *counts)
    assert (finding.check, finding.severity, finding.place) == ("perplexity", "error", "level 1")
    assert "perplexity 1.0 of at most 64" in finding.message
    few = usage_of(spec, torch.randint(0, 64, (4, 4)))  # 8 tokens a level reach at most 8
    assert check_perplexity(spec, *few) == []


def test_positions_that_say_nothing():
    spec = TokenSpec((Level((4,), 8),))
    tokens = torch.randint(0, 8, (400, 4))
    assert check_perplexity(spec, *usage_of(spec, tokens)) == []
    tokens[:, 0] = 3
    (finding,) = check_perplexity(spec, *usage_of(spec, tokens))
    assert finding.check == "constant positions"
    assert finding.message.startswith("1 of 4 positions")


def test_levels_of_a_tree_without_children():
    spec = TokenSpec((Level((2,), 4), Level((2,), 3, "path")))
    first, second = torch.randn(1, 4, 5), torch.randn(4, 3, 5)
    assert check_children(spec, [first, second]) == []
    second[1] = second[1, :1]
    (finding,) = check_children(spec, [first, second])
    assert (finding.check, finding.severity, finding.place) == ("tree", "error", "level 1")
    assert finding.message.startswith("1 of 4 nodes of the level above have no children")
    tokens = torch.cat([torch.randint(0, 4, (400, 2)), torch.randint(0, 3, (400, 2))], 1)
    nothing = [None, None]
    assert check_children(spec, nothing, usage_of(spec, tokens)[0]) == []
    tokens[:, 2:] = 2
    (finding,) = check_children(spec, nothing, usage_of(spec, tokens)[0])
    assert finding.message.startswith("4 of 4 nodes in use send all that reaches them to one child")


def test_lengths_of_directions_are_not_compared():
    vectors = 30 * torch.randn(200, 4)
    directions = torch.nn.functional.normalize(vectors, dim=-1)
    assert check_norms("q", vectors, directions, directions[None, :8]) == []
    assert check_norms("q", vectors, directions * torch.rand(200, 1), None)[0].severity == "error"


def test_codes_that_never_moved_from_the_origin():
    vectors = torch.nn.functional.normalize(torch.randn(500, 4), dim=-1) * (1 + torch.rand(500, 1))
    table = torch.cat([vectors[:12], 1e-3 * torch.randn(4, 4)])[None]
    (finding,) = check_norms("q", vectors, vectors, table)
    assert finding.numbers["stray"] == 4
    assert check_norms("q", vectors, vectors, table[:, :12]) == []


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_words_or_json(run, healthy, spoiled):
    status, out, _ = run("doctor", healthy)
    assert status == 0
    assert out.startswith("nothing found; looked for: not finite, subnormal")

    def change(state):
        state[CODES][0, 12:] = state[CODES][0, :4]

    folder = spoiled(change)
    status, out, err = run("doctor", folder, "--data", "photos", "--limit", 96)
    assert status == 1
    assert out.startswith("error: ")
    assert "twins, the codebook: 4 of 16 codes are copies" in out
    assert "  remedy: lower tokenizer.codebook_size" in out
    assert "ranks not checked" in err
    status, out, _ = run("doctor", folder, "--json")
    found = json.loads(out)
    assert status == 1
    assert [finding["check"] for finding in found["findings"]] == ["twins"]
    assert "norms" in found["not_checked"]


@pytest.mark.parametrize("key", ["smoke/vqvae2", "smoke/hrvqvae", "smoke/qgvae", "smoke/rqvae"])
@pytest.mark.slow
def test_it_looks_at_every_kind_of_tokenizer(run, tmp_path, key):
    assert run("train", key, "train.steps=2", "--output", "run")[0] == 0
    status, out, _ = run("doctor", "run", "--data", "digits", "--limit", 32, "--json")
    assert status in (0, 1)
    assert "norms" in json.loads(out)["checked"]


def test_findings_come_worst_first():
    findings = [Finding("a", s, "", "", "") for s in ("note", "error", "warning")]
    diagnosis = Diagnosis(findings)
    assert [f.severity for f in diagnosis.sorted()] == ["error", "warning", "note"]
    assert diagnosis.is_damaged
    assert not Diagnosis(findings[:1]).is_damaged
    assert [graded(x, 0.1, 0.5) for x in (0.05, 0.1, 0.5)] == [None, "warning", "error"]
