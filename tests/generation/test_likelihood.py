"""``spectok eval PRIOR --likelihood``: the bits of held-out images' tokens."""

import json
import math

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
