"""What version 0.1 saved still loads, and gives the same tokens and images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spectok import load_tokenizer
from spectok_generation import TokenCache, TokenPipeline, load_prior
from spectok_generation.drawing import choose_labels, draw_batch
from spectok_generation.pairs import load_pair
from spectok_generation.records import tokenizer_record
from spectok_generation.sampling import sample_batch
from spectok_generation.text.features import CaptionFeatures

SAVED = Path(__file__).parent.parent / "fixtures" / "saved_by_0_1"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # other processors and releases of torch round differently


@pytest.mark.parametrize("name", sorted(path.name for path in (SAVED / "tokenizers").iterdir()))
def test_a_tokenizer_encodes_and_decodes_as_it_did(name):
    folder = SAVED / "tokenizers" / name
    tokenizer, expected = load_tokenizer(folder), load_file(folder / "expected.safetensors")
    assert torch.equal(tokenizer.encode(expected["images"]), expected["tokens"])
    torch.testing.assert_close(tokenizer.decode(expected["tokens"]), expected["decoded"], **CLOSE)


def test_a_tokenizer_saved_again_is_the_same_one(tmp_path):
    for name in ("vqgan", "favae", "vqvae", "vqvae2"):
        tokenizer = load_tokenizer(SAVED / "tokenizers" / name)
        tokenizer.save_pretrained(tmp_path / name)
        again = load_tokenizer(tmp_path / name)
        assert tokenizer_record(again) == tokenizer_record(tokenizer)


def test_a_prior_its_tokenizer_and_its_tokens_belong_together_as_they_did():
    run = SAVED / "prior_run"
    expected = load_file(run / "expected.safetensors")
    prior, tokenizer = load_pair(run / "model", run / "tokenizer" / "model")
    assert torch.equal(sample_batch(prior, range(4), choose_labels(prior, 4)), expected["drawn"])
    cache = TokenCache(run / "tokens")
    cache.check_tokenizer(tokenizer_record(tokenizer))
    assert torch.equal(torch.from_numpy(cache.indices(slice(None))).long(), expected["cached"])
    assert torch.equal(torch.tensor(cache.labels), expected["labels"])


@pytest.mark.parametrize("name", ["pixelcnn", "ldm"])
def test_a_pipeline_draws_what_it_drew(name):
    pipeline = TokenPipeline.from_pretrained(SAVED / "pipelines" / name)
    expected = load_file(SAVED / "pipelines" / name / "expected.safetensors")["images"]
    labels = choose_labels(pipeline.prior, len(expected))
    images = draw_batch(pipeline.prior, pipeline.tokenizer, range(len(expected)), labels)
    torch.testing.assert_close(images, expected, **CLOSE)


def test_a_prior_reads_captions_as_it_did():
    prior = load_prior(SAVED / "cat" / "model")
    text = CaptionFeatures(SAVED / "cat" / "captions").rows([0, 1, 2, 3])
    expected = load_file(SAVED / "cat" / "expected.safetensors")["drawn"]
    assert torch.equal(sample_batch(prior, range(4), text), expected)
