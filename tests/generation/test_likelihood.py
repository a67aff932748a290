"""``spectok eval PRIOR --likelihood``: the bits of held-out images' tokens."""

import json
import math
import re

import pytest
import torch

from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, InputError
from spectok.testing.small import small_tokenizer
from spectok_generation import create_prior, measure_likelihood
from spectok_generation.records import tokenizer_record

SMALL = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16},
    "pixelcnn": {"num_layers": 2, "width": 8},
}


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    return small_tokenizer("vqvae").eval()


@pytest.fixture(scope="module")
def digits(tokenizer):
    size = tokenizer.image_shape[1]
    data = DataConfig(name="digits", split="test", limit=21, image_size=size)
    return build_dataset(data, train=False)


@pytest.fixture
def make(tokenizer, sharp):
    def make(name, **options):
        torch.manual_seed(2)
        settings = {"token_spec": tokenizer.token_spec, **SMALL[name], **options}
        record = tokenizer_record(tokenizer)
        return sharp(create_prior(name, tokenizer=record, **settings))

    return make


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("num_classes", [0, 10])
def test_it_is_the_mean_of_every_tokens_surprise(name, num_classes, make, tokenizer, digits):
    prior = make(name, num_classes=num_classes)
    found = measure_likelihood(prior, tokenizer, digits)
    images = torch.stack([item["images"] for item in digits])
    labels = torch.tensor([item["label"] for item in digits])
    tokens = tokenizer.encode(images)
    with torch.no_grad():
        condition = prior.check_condition(labels if num_classes else None, len(tokens))
        chances = prior.logits(tokens, condition).double().softmax(-1)
    bits = -chances.gather(2, tokens[..., None]).log2().mean().item()
    metrics = found["metrics"]
    assert metrics["bits_per_token"] == pytest.approx(bits, rel=1e-5)
    assert metrics["bits_per_image"] == pytest.approx(bits * tokens.shape[1], rel=1e-5)
    assert metrics["bits_per_pixel"] == pytest.approx(
        bits * tokens.shape[1] / images[0, 0].numel(), rel=1e-5
    )
    for unit in ("token", "image", "pixel"):
        nats = metrics[f"bits_per_{unit}"] * math.log(2)
        assert metrics[f"nats_per_{unit}"] == pytest.approx(nats)
    assert found["uncoded"]["bits_per_image"] == tokenizer.token_spec.bits_per_image
    assert found["likelihood"] == found["protocol"]["likelihood"] == "exact"
    assert found["condition"] == ("class" if num_classes else None)
    assert found["num_images"] == 21


def test_batches_do_not_change_it(make, tokenizer, digits):
    prior = make("gpt", num_classes=10)
    one, other = (measure_likelihood(prior, tokenizer, digits, batch_size=n) for n in (1, 64))
    assert one == other
    few = measure_likelihood(
        prior,
        tokenizer,
        build_dataset(
            DataConfig(name="digits", split="test", limit=1, image_size=digits.image_shape[1]),
            train=False,
        ),
    )
    assert few["protocol"]["id"] != one["protocol"]["id"]
    assert few["standard_error"] is None


def test_what_has_no_likelihood_says_so(make, tokenizer, digits):
    record = tokenizer_record(tokenizer)
    spec = tokenizer.token_spec
    options = {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 20}
    ldm = create_prior("ldm", token_spec=spec, tokenizer=record, **options)
    with pytest.raises(InputError, match="has no likelihood of tokens: it models continuous"):
        measure_likelihood(ldm, tokenizer, digits)
    torch.manual_seed(3)
    other = small_tokenizer("vqvae").eval()
    with pytest.raises(CheckpointError, match="this prior models the tokens of"):
        measure_likelihood(make("gpt"), other, digits)
    broken = make("gpt")
    with torch.no_grad():
        broken.head.biases[0].fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        measure_likelihood(broken, tokenizer, digits)


def test_the_command_writes_and_shows_it(make, tokenizer, tmp_path, spectok):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    make("gpt", num_classes=10).save_pretrained(tmp_path / "prior")
    words = ["eval", tmp_path / "prior", "--likelihood", "--tokenizer", tmp_path / "tokenizer"]
    words += ["--data", "digits", "--limit", 5, "--out", tmp_path / "bits.json"]
    status, out, err = spectok(*words)
    assert status == 0, err
    written = json.loads((tmp_path / "bits.json").read_text())
    assert f"bits_per_image  {written['metrics']['bits_per_image']:,.5g}" in out
    assert "exact likelihood of the tokens, given the class" in out
    assert "next: spectok eval" in out


@pytest.fixture
def measured(make, tokenizer, tmp_path, spectok):
    """Write a likelihood into the card of a prior; return the words that measure it again."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    make("gpt", num_classes=10).save_pretrained(tmp_path / "prior")
    words = ["eval", tmp_path / "prior", "--tokenizer", tmp_path / "tokenizer"]
    data = ["--data", "digits", "--limit", 5]
    status, out, err = spectok(*words, "--likelihood", "--card", *data)
    assert status == 0, err
    assert f"written into the card: {tmp_path / 'prior' / 'README.md'}" in out
    return [*words, "--verify"]


def test_a_card_holds_it_and_it_is_measured_again(measured, tmp_path, spectok):
    card = (tmp_path / "prior" / "README.md").read_text()
    assert "| bits per image |" in card
    assert "likelihood of held-out images' tokens" in card
    status, out, err = spectok(*measured, "--out", tmp_path / "again.json")
    assert status == 0, err
    assert "pass: all that" in out
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["passed"]
    checked = {check["name"] for check in again["claims"][0]["checks"]}
    assert {"weights", "protocol", "bits_per_image", "parameters", "num_images"} <= checked


def test_a_card_of_other_weights_or_numbers_does_not_hold(measured, tmp_path, spectok):
    from safetensors.torch import load_file, save_file

    card = tmp_path / "prior" / "README.md"
    text = card.read_text()
    bits = re.search(r"bits_per_image: ([\d.]+)", text)[1]
    card.write_text(text.replace(f"bits_per_image: {bits}", "bits_per_image: 1.5"))
    status, out, _ = spectok(*measured)
    assert (status, "does not hold: bits_per_image" in out) == (1, True)
    card.write_text(text)
    weights = tmp_path / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    status, out, _ = spectok(*measured)
    assert (status, "does not hold: weights" in out) == (1, True)


def test_a_card_without_numbers_and_wrong_options_are_one_line(measured, tmp_path, spectok):
    for words, message in [
        ([*measured, "--limit", 3], "leave out --split and --limit"),
        ([*measured, "--top-k", 3], "--top-k is about images that are drawn; --verify draws none"),
        ([*measured, "--likelihood"], "give --num-images, to measure"),
        ([*measured, "--card"], "--card writes the bits of --likelihood"),
    ]:
        status, _, err = spectok(*words)
        assert status == 2
        assert err.count("\n") == 1
        assert message in err
    (tmp_path / "prior" / "README.md").unlink()
    status, _, err = spectok(*measured)
    assert (status, "has no README.md" in err) == (2, True)
