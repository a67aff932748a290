"""Coding with a prior: the same tokens back, in as many bits as the prior says."""

import hashlib
import math

import numpy as np
import pytest
import torch

from spectok import Level, TokenSpec
from spectok.codec import Codec
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, DataError, InputError
from spectok.testing.small import small_tokenizer
from spectok_generation import PriorCoder, create_prior
from spectok_generation.coding import MARGIN, STEPS, UNIT, WEIGHTS, choose_shift, tables
from spectok_generation.records import tokenizer_record

constriction = pytest.importorskip("constriction", reason="needs the extra codec")

KINDS = {"grid": "vqvae", "global": "qgvae", "levels": "hrvqvae", "frequency": "fqvae"}
PRIORS = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16},
    "pixelcnn": {"num_layers": 2, "width": 8, "head_width": 16},
}


def make_tokenizer(kind):
    torch.manual_seed(1)
    return small_tokenizer(KINDS[kind], image_size=16 if kind == "global" else 8).eval()


def make_prior(name, spec, sharp, **options):
    torch.manual_seed(2)
    return sharp(create_prior(name, token_spec=spec, **PRIORS[name], **options))


def random_tokens(spec, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(spec.vocab_sizes)
    return (torch.rand(count, spec.num_tokens, generator=generator) * sizes).long()


def digits_for(tokenizer, count):
    channels, size = tokenizer.image_shape[:2]
    data = DataConfig(name="digits", split="train", limit=count, image_size=size, channels=channels)
    return torch.stack([item["images"] for item in build_dataset(data, train=False)])


@pytest.fixture
def threads():
    """Set the number of threads, and restore it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def round_trip(kind, name, sharp, threads, count):
    """Check that batches and threads change neither the file nor the tokens."""
    tokenizer = make_tokenizer(kind)
    prior = make_prior(name, tokenizer.token_spec, sharp, tokenizer=tokenizer_record(tokenizer))
    images = digits_for(tokenizer, count)
    threads(1)
    tokens = torch.cat([tokenizer.encode(image[None]) for image in images])
    files = [Codec(tokenizer, PriorCoder(prior, rows)).compress(images) for rows in (1, 64)]
    assert files[0] == files[1]
    for number, rows in ((1, 7), (2, 64)):
        threads(number)
        stored = Codec(tokenizer, PriorCoder(prior, rows)).read(files[0])
        wrong = (torch.cat(stored.indices) != tokens).any(1)
        assert not wrong.any(), f"{int(wrong.sum())} of {count} images came back differently"


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_comes_back_whatever_the_batches_and_threads(kind, name, sharp, threads):
    round_trip(kind, name, sharp, threads, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_images_come_back(kind, name, sharp, threads):
    tokenizer = make_tokenizer(kind)
    prior = make_prior(name, tokenizer.token_spec, sharp)
    tokens = random_tokens(tokenizer.token_spec, 2000)
    threads(1)
    data = PriorCoder(prior, 64).encode(tokens, None)
    threads(2)
    assert torch.equal(PriorCoder(prior, 48).decode(data, len(tokens), None), tokens)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_file_is_as_long_as_the_likelihood_says(name, num_classes, sharp):
    spec = TokenSpec((Level((4, 4), 11),))
    prior = make_prior(name, spec, sharp, num_classes=num_classes)
    tokens = random_tokens(spec, 100)
    labels = torch.arange(100) % num_classes if num_classes else None
    bits = -prior.log_prob(tokens, labels).double().sum().item() / math.log(2)
    coder = PriorCoder(prior)
    together = coder.encode(tokens, labels)
    assert bits <= 8 * len(together) * (1 + 1e-4)
    assert 8 * len(together) < 1.01 * bits
    apart = coder.encode(tokens, labels, together=False)
    assert 8 * (len(apart) - len(together)) / 100 < 40
    for data, whole in ((together, True), (apart, False)):
        assert torch.equal(coder.decode(data, 100, labels, together=whole), tokens)


def test_a_place_of_one_value_costs_nothing(sharp):
    spec = TokenSpec((Level((1,), 1), Level((3,), 5)))
    coder = PriorCoder(make_prior("gpt", spec, sharp))
    tokens = random_tokens(spec, 9)
    assert torch.equal(coder.decode(coder.encode(tokens, None), 9, None), tokens)
    alone = TokenSpec((Level((2,), 1),))
    coder = PriorCoder(make_prior("gpt", alone, sharp))
    data = coder.encode(torch.zeros(9, 2, dtype=torch.int64), None)
    assert len(data) == 1
    assert torch.equal(coder.decode(data, 9, None), torch.zeros(9, 2, dtype=torch.int64))


# -- tables ---


def test_the_weights_are_the_same_on_every_machine():
    exact = np.array([np.exp(np.longdouble(-a) / STEPS) for a in range(len(WEIGHTS))]) * UNIT
    gaps = np.abs(exact - np.floor(exact) - 0.5)
    assert gaps[1:].min() > 1e-5  # far more than a float64 exponential is wrong by
    digest = hashlib.sha256(WEIGHTS.astype("<f8").tobytes()).hexdigest()
    assert digest.startswith("b7abea3454c7d109")


def test_the_library_still_makes_the_same_bytes_of_tables():
    generator = np.random.default_rng(0)
    weights = WEIGHTS[generator.integers(0, len(WEIGHTS), (50, 7))]
    symbols = generator.integers(0, 7, 50).astype(np.int32)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, constriction.stream.model.Categorical(perfect=False), weights)
    data = encoder.get_compressed().astype("<u4").tobytes()
    assert hashlib.sha256(data).hexdigest().startswith("d8c0259108945cd9")


def test_values_near_the_middle_are_moved_and_noise_then_changes_nothing():
    generator = np.random.default_rng(0)
    steps = generator.random((20, 30)) * 3000
    steps[:, 0] = 0
    steps[3, 4] = 17.5 - 1e-12  # rounds either way
    assert tables(steps, 0)[3, 4] != tables(steps + 2e-12, 0)[3, 4]
    shift = choose_shift(steps)
    assert shift > 0
    for noise in (-MARGIN / 2, MARGIN / 2):
        assert np.array_equal(tables(steps, shift), tables(steps + noise, shift))
    assert choose_shift(np.zeros((3, 2))) == 0


def test_a_moved_place_is_written_and_comes_back(sharp, monkeypatch):
    monkeypatch.setattr("spectok_generation.coding.MARGIN", 2e-3)  # so that many are moved
    spec = TokenSpec((Level((4, 4), 11),))
    coder = PriorCoder(make_prior("gpt", spec, sharp))
    tokens = random_tokens(spec, 70)
    data = coder.encode(tokens, None)
    assert data[0] > 0
    assert torch.equal(coder.decode(data, 70, None), tokens)


# -- what is refused ---


def test_other_weights_and_missing_priors_are_refused(sharp):
    tokenizer = make_tokenizer("grid")
    prior = make_prior("gpt", tokenizer.token_spec, sharp)
    images = digits_for(tokenizer, 3)
    plain, coded = Codec(tokenizer), Codec(tokenizer, PriorCoder(prior))
    with pytest.raises(CheckpointError, match="written with a prior"):
        plain.decompress(coded.compress(images))
    with pytest.raises(CheckpointError, match="written without a prior"):
        coded.decompress(plain.compress(images))
    with torch.no_grad():
        prior.head.biases[0][0, 0] += 1e-6
    with pytest.raises(CheckpointError, match="another prior"):
        Codec(tokenizer, PriorCoder(prior)).decompress(coded.compress(images))


def test_a_prior_that_computes_other_numbers_is_found_out(sharp):
    tokenizer = make_tokenizer("grid")
    prior = make_prior("gpt", tokenizer.token_spec, sharp)
    writer, reader = (Codec(tokenizer, PriorCoder(prior)) for _ in range(2))
    with torch.no_grad():  # behind the fingerprint, as a broken library would
        reader.coder._prior.head.biases[0].normal_()
    with pytest.raises(DataError, match=r"came out differently .*first at image \d+, .*nothing"):
        reader.decompress(writer.compress(digits_for(tokenizer, 20)))


def test_what_cannot_code_says_so(sharp):
    tokenizer = make_tokenizer("grid")
    spec = tokenizer.token_spec
    options = {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 20}
    record = tokenizer_record(tokenizer)
    ldm = create_prior("ldm", token_spec=spec, tokenizer=record, **options)
    with pytest.raises(InputError, match="does not give the probability of each token"):
        PriorCoder(ldm)
    other = make_prior("gpt", TokenSpec((Level((4,), 3),)), sharp)
    with pytest.raises(InputError, match="laid out differently"):
        Codec(tokenizer, PriorCoder(other))
    classes = Codec(tokenizer, PriorCoder(make_prior("gpt", spec, sharp, num_classes=3)))
    images = digits_for(tokenizer, 2)
    with pytest.raises(InputError, match="class always given"):
        classes.compress(images)
    with pytest.raises(InputError, match=r"class 3 is not one of those there are \(0..2\)"):
        classes.compress(images, labels=[0, 3])
    data = classes.compress(images, labels=[2, 0])
    assert classes.decompress(data).labels == [2, 0]


def test_tiles_of_an_image_are_coded_too(sharp):
    tokenizer = make_tokenizer("grid")
    channels, size = tokenizer.image_shape[:2]
    codec = Codec(tokenizer, PriorCoder(make_prior("gpt", tokenizer.token_spec, sharp)))
    image = torch.rand(channels, 2 * size + 3, size - 1) * 2 - 1
    data = codec.compress([image])
    assert codec.decompress(data).images[0].shape == image.shape
    plain = Codec(tokenizer)
    same = plain.compress([image], tile=size)
    assert torch.equal(codec.read(data).indices[0], plain.read(same).indices[0])
    with pytest.raises(InputError, match="leave the tile out"):
        codec.compress([image], tile=size // 2)
