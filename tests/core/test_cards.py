"""Model cards: what training writes, what measuring adds, and what a person wrote stays."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from spectok.cards import CARD, Claim, Subject, read_claims, record_claim, write_card
from spectok.cards.content import NOT_MEASURED, fenced, render
from spectok.cards.curve import curves_of
from spectok.cards.file import (
    BEGIN,
    END,
    find_numbers,
    is_untouched,
    read_header,
    replace_key,
    replace_numbers,
    seal,
)
from spectok.cards.folder import BESIDE, CURVE
from spectok.errors import CheckpointError
from spectok.loading import load_trained
from spectok.modeling import model_fingerprint
from spectok.training.card import without_places

PROTOCOL = {
    "id": "12345678e1234567",  # which YAML would read as a number
    "num_images": 20,
    "preprocessing": {"steps": [["stretch", 8]], "filter": "bilinear", "antialias": True},
    "precision": "float32",
}
SUBJECT = Subject("mine", "A model.", "load()", ["image-tokenizer"], "0" * 64)
THEIRS = """\
  - name: theirs
    results:
      - dataset: {name: ImageNet, type: imagenet}
        metrics:
          - {type: accuracy, value: 99}
"""
RECORDS = [{"step": step, "loss": 1 / step, "loss/a": 0.5 / step} for step in (1, 2, 3)]


def claim(weights="0" * 64, protocol=PROTOCOL["id"], **values):
    data = {"name": "digits", "split": "test"}
    return Claim(weights, data, PROTOCOL | {"id": protocol}, values or {"psnr": 21.123456789012345})


# -- after training --------------------------------------------------------------------------------


def test_training_writes_a_card_that_the_hub_reads(tmp_path, train, vqvae):
    train(tmp_path / "digits", vqvae)
    folder = tmp_path / "digits" / "model"
    text = (folder / CARD).read_text()
    data = ModelCard.load(folder / CARD).data
    assert (data.library_name, data.model_name) == ("spectok", "digits")
    assert {"image-tokenizer", "vector-quantization", "vqvae"} <= set(data.tags)
    assert data["data_license"] == "cc-by-4.0"
    assert data["spectok"]["weights"] == model_fingerprint(load_trained(folder))
    assert data.to_dict() == read_header(text, CARD)
    assert is_untouched(text)
    assert "codebook_size: 16" in text  # the recipe
    assert "50, served as 8×8 grey" in text  # the data report
    assert "12 steps" in text
    assert NOT_MEASURED in text
    with Image.open(folder / CURVE) as picture:
        assert picture.size[0] > 300


def test_a_recipe_in_a_card_names_no_place_of_this_machine(tmp_path):
    recipe = {"data": {"path": str(tmp_path / "faces"), "name": "folder"}, "list": [1, "a/b"]}
    assert without_places(recipe) == {
        "data": {"path": "…/faces", "name": "folder"},
        "list": [1, "a/b"],
    }


def test_a_card_of_ours_is_replaced_and_an_edited_one_is_not(tmp_path, capsys):
    path = write_card(tmp_path, SUBJECT, RECORDS)
    assert write_card(tmp_path, Subject(**vars(SUBJECT) | {"name": "again"})) == path
    assert "# again" in path.read_text()
    edited = path.read_text() + "\nWhat I found out.\n"
    path.write_text(edited)
    assert write_card(tmp_path, SUBJECT) == tmp_path / BESIDE
    assert path.read_text() == edited
    assert "# mine" in (tmp_path / BESIDE).read_text()
    assert "edited; the new card is README.new.md" in capsys.readouterr().err


def test_a_card_that_cannot_be_written_does_not_hurt_the_model(tmp_path, train, vqvae, capsys):
    folder = tmp_path / "run" / "model"
    (folder / CARD).mkdir(parents=True)  # no file can take this name
    train(tmp_path / "run", vqvae)
    assert "the model is saved, its card is not" in capsys.readouterr().err
    assert load_trained(folder).token_spec.num_tokens == 16


def test_a_crash_while_writing_leaves_the_card_as_it_was(tmp_path, monkeypatch):
    path = write_card(tmp_path, SUBJECT)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left"):
        record_claim(tmp_path, claim(), SUBJECT)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [CARD]


def test_curves_hold_positive_numbers_of_the_loss_and_its_terms():
    records = [*RECORDS, {"step": 4, "loss": 0.0, "loss/a": float("nan"), "perplexity": 3.0}]
    curves = curves_of(records)
    assert curves == {"loss": ([1, 2, 3], [1, 0.5, 1 / 3]), "a": ([1, 2, 3], [0.5, 0.25, 0.5 / 3])}


# -- numbers ---------------------------------------------------------------------------------------


def test_numbers_come_back_bit_for_bit_by_either_reader(tmp_path):
    write_card(tmp_path, SUBJECT)
    path = record_claim(tmp_path, claim(psnr=1 / 3, num_images=20), SUBJECT)
    claims, contradictions = read_claims(path)
    assert claims == [claim(psnr=1 / 3, num_images=20)]
    assert contradictions == []
    assert (
        ModelCard.load(path).data.to_dict()["spectok"]
        == (read_header(path.read_text(), CARD)["spectok"])
    )
    first, second = ModelCard.load(path).data.eval_results
    assert (first.metric_type, first.metric_value) == ("psnr", 1 / 3)
    assert first.metric_args == {"protocol": PROTOCOL["id"]}
    assert first.dataset_name == "20 images of digits/test, stretch 8 (bilinear, antialiased)"
    assert second.metric_type == "num_images"
    assert is_untouched(path.read_text())


def test_each_protocol_has_its_claim_and_other_weights_lose_theirs(tmp_path):
    for value, protocol in [(1.0, "a"), (2.0, "b"), (3.0, "a")]:
        path = record_claim(tmp_path, claim(protocol=protocol, psnr=value), SUBJECT)
    found = {c.protocol_id: c.values["psnr"] for c in read_claims(path)[0]}
    assert found == {"a": 3.0, "b": 2.0}
    record_claim(tmp_path, claim(weights="1" * 64, protocol="c"), SUBJECT)
    assert [c.protocol_id for c in read_claims(path)[0]] == ["c"]


def test_numbers_in_an_edited_card_change_nothing_else_of_it(tmp_path):
    path = tmp_path / CARD
    header = "---\nlicense: mit  # mine\ntags:\n- a\n- b\nmodel-index: []\nlanguage: en\n---\n"
    path.write_text(f"{header}# My model\n\nMy words.\n")
    record_claim(tmp_path, claim(), SUBJECT)
    text = path.read_text()
    assert text.startswith(header.partition(" []")[0] + "\n  - name: mine\n")
    assert "language: en\n" in text
    assert "# My model\n\nMy words.\n" in text
    assert read_header(text, CARD)["tags"] == ["a", "b"]
    assert not is_untouched(text)  # a later training writes its card beside it
    record_claim(tmp_path, claim(psnr=3.0), SUBJECT)
    assert path.read_text().count(BEGIN) == 1
    assert read_claims(path)[0][0].values == {"psnr": 3.0}


def test_contradictions_are_named(tmp_path):
    path = record_claim(tmp_path, claim(psnr=21.5), SUBJECT)
    text = path.read_text()
    path.write_text(text.replace("value: 21.5", "value: 31.5"))
    assert read_claims(path)[1] == ["model-index lists psnr 31.5, the claim says 21.5"]
    path.write_text(text.replace("| PSNR, dB | 21.5 |", "| PSNR, dB | 31.5 |"))
    assert read_claims(path)[1] == ["the table of numbers in the text is not that of the claims"]
    path.write_text(text.replace(BEGIN, "").replace(END, ""))
    assert "stand outside the two comments" in read_claims(path)[1][0]
    unnamed = re.sub(r" *args:\n *protocol: .*\n", "", text)
    assert unnamed != text
    path.write_text(unnamed.replace("value: 21.5", "value: 31.5"))
    assert read_claims(path)[1] == ["model-index lists psnr 31.5, the claim says 21.5"]
    assert THEIRS not in text
    path.write_text(text.replace("model-index:\n", f"model-index:\n{THEIRS}"))
    assert read_claims(path)[1] == [
        "model-index lists accuracy 99, and no claim tells how to measure that again"
    ]


def test_results_of_others_in_the_list_of_the_hub_stay(tmp_path):
    path = tmp_path / CARD
    path.write_text(f"---\nmodel-index:\n{THEIRS}---\ntext\n")
    for value, protocol in [(1.0, "a"), (2.0, "a"), (3.0, "b")]:
        record_claim(tmp_path, claim(protocol=protocol, psnr=value), SUBJECT)
    record_claim(tmp_path, claim(weights="1" * 64, protocol="c", psnr=4.0), SUBJECT)
    ours, theirs = read_header(path.read_text(), CARD)["model-index"]
    assert [m["value"] for r in ours["results"] for m in r["metrics"]] == [4.0]
    assert theirs["results"][0]["metrics"] == [{"type": "accuracy", "value": 99}]


def test_numbers_stay_when_training_goes_on_and_changes_no_weight(tmp_path):
    write_card(tmp_path, SUBJECT, RECORDS)
    record_claim(tmp_path, claim(psnr=21.5), SUBJECT)
    again = write_card(tmp_path, SUBJECT, RECORDS)
    assert again is not None
    assert read_claims(again) == ([claim(psnr=21.5)], [])
    assert is_untouched(again.read_text())
    write_card(tmp_path, replace(SUBJECT, weights="1" * 64), RECORDS)
    assert NOT_MEASURED in again.read_text()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("spectok: {measured: 3}", "is no list of claims"),
        ("spectok: {measured: [3]}", "claim 1 is no claim: 3"),
        ("spectok: {measured: [{weights: a}]}", "has no data that a claim needs"),
        ("spectok: {measured: []}", "claims no numbers; 'spectok eval"),
        ("[1, 2]", "its header is no mapping"),
        ("a: [", "not valid YAML"),
        (
            "spectok: {measured: [{weights: a, data: {}, protocol: {}, values: {}}]}",
            "names a protocol without an id",
        ),
        (
            "spectok: {measured: [{weights: a, data: {}, protocol: {id: b}, "
            "values: {psnr: .inf}}]}",
            "claims 'psnr' inf, no number",
        ),
        (
            "spectok: {measured: [{weights: a, data: {}, protocol: {id: b}, values: {}}]}",
            "claim 1 claims no number",
        ),
    ],
)
def test_a_card_that_is_no_card_is_one_line(tmp_path, header, message):
    path = tmp_path / CARD
    path.write_text(f"---\n{header}\n---\ntext\n")
    with pytest.raises(CheckpointError) as error:
        read_claims(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_in_a_claim_is_not_followed():
    content = claim().to_dict()
    content["data"]["path"] = "/etc"
    assert Claim.from_dict(content, "a card").data == {"name": "digits", "split": "test"}


# -- the format ------------------------------------------------------------------------------------


def test_parts_of_a_card_are_replaced_alone():
    card = "---\na: 1\nb:\n- x\n\n- y\nc: 2\n---\ntext\n"
    assert replace_key(card, "b", None) == "---\na: 1\nc: 2\n---\ntext\n"
    assert replace_key(card, "c", [3]) == "---\na: 1\nb:\n- x\n\n- y\nc:\n  - 3\n---\ntext\n"
    assert replace_key("text\n", "d", 4) == "---\nd: 4\n---\ntext\n"
    assert replace_key("text\n", "d", None) == "text\n"
    numbered = replace_numbers(card, "one")
    assert find_numbers(numbered) == "one"
    assert find_numbers(replace_numbers(numbered, r"two \1")) == r"two \1"
    assert numbered.startswith(card)
    assert find_numbers(card) is None


def test_every_edit_breaks_the_seal():
    card = seal(render(SUBJECT))
    assert is_untouched(card)
    assert seal(card) == card
    for edited in (card + " ", card.replace("mine", "yours"), card.replace("sha256-", "sha256-0")):
        assert not is_untouched(edited)
    assert not is_untouched("# a person's card\n")


def test_a_name_cannot_leave_its_block():
    assert fenced("a\n```\nb", "text") == "````text\na\n```\nb\n````"
    rows = [("unreadable", "1: a```\n---\n<!-- x.png (cut short)")]
    card = render(Subject(**vars(SUBJECT) | {"data": rows, "name": "x\n---\n# y <b>"}))
    assert read_header(card, CARD)["model_name"] == "x\n---\n# y <b>"
    assert "\n---\n# y" not in card.partition("\n---\n")[2]
    assert replace_numbers(card, "z").count(BEGIN) == 1


def test_every_bit_of_the_weights_counts(tmp_path, train, vqvae):
    tokenizer = train(tmp_path, vqvae).model
    before = model_fingerprint(tokenizer)
    assert before == model_fingerprint(load_trained(tmp_path))
    with torch.no_grad():
        next(tokenizer.parameters()).view(-1)[0] += 1e-6
    assert model_fingerprint(tokenizer) != before
