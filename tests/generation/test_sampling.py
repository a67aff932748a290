"""The sampler: its randomness, its filters, and what it refuses."""

import pytest
import torch

from spectok.errors import InputError, TokenError
from spectok_generation import SamplingOptions, create_prior, sample_tokens
from spectok_generation.sampling import draw_tokens, image_uniforms, sample_batch

TINY = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0}
EVEN = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


@pytest.fixture
def prior(spec, sharp):
    return sharp(create_prior("gpt", spec, num_classes=3, class_dropout=0.1, **TINY))


def test_an_image_does_not_depend_on_its_batch(prior, checked_shapes):
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    together = sample_tokens(prior, 7, labels, seed=5)
    assert torch.equal(sample_tokens(prior, 7, labels, seed=5, batch_size=5), together)
    assert torch.equal(sample_tokens(prior, 7, labels, seed=5, batch_size=1), together)
    alone = sample_batch(prior, [4], labels[4:5], seed=5)
    assert torch.equal(alone[0], together[4])
    prior.token_spec.validate(together)


def test_seeds_and_numbers_have_streams_of_their_own():
    streams = [image_uniforms(seed, number, 50) for seed in (0, 1) for number in (0, 1)]
    assert torch.equal(streams[1], image_uniforms(0, 1, 50))
    assert len({float(stream[0]) for stream in streams}) == 4
    many = torch.stack([image_uniforms(0, i, 20) for i in range(500)])
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)
    assert abs(torch.corrcoef(many[:, :2].T)[0, 1].item()) < 0.15


def test_sampling_leaves_the_global_random_state_alone(prior):
    prior.train()
    before = torch.get_rng_state()
    sample_tokens(prior, 2, torch.tensor([0, 1]))
    assert torch.equal(torch.get_rng_state(), before)
    assert prior.training


def test_samples_follow_the_distribution_of_the_prior(spec, sharp):
    prior = sharp(create_prior("gpt", spec, **TINY))
    tokens = sample_tokens(prior, 2000, batch_size=2000)
    found, counts = tokens.unique(dim=0, return_counts=True)
    expected = prior.log_prob(found).exp()
    frequencies = counts / counts.sum()
    assert (frequencies - expected).abs().max() < 0.05
    assert expected.sum() > 0.9


def test_drawing_inverts_the_cumulative_distribution():
    probs = torch.tensor([0.1, 0.0, 0.4, 0.5])
    logits = probs.log().expand(1000, -1)
    counts = draw_tokens(logits, EVEN, SamplingOptions()).bincount(minlength=4)
    assert counts.tolist() == [100, 0, 400, 500]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    dead_ends = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf]).expand(2, -1)
    assert draw_tokens(dead_ends, edges, SamplingOptions()).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [0, 0, 0, 1000]),
        ({"top_k": 2}, [0, 0, 375, 625]),
        ({"top_k": 9}, [100, 100, 300, 500]),
        ({"top_p": 0.4}, [0, 0, 0, 1000]),
        ({"top_p": 0.6}, [0, 0, 375, 625]),
        ({"top_p": 1.0}, [100, 100, 300, 500]),
        ({"top_k": 2, "top_p": 0.55}, [0, 0, 0, 1000]),
        ({"temperature": 0.5}, [28, 28, 250, 694]),
    ],
)
def test_filters(options, expected):
    logits = torch.tensor([0.1, 0.1, 0.3, 0.5]).log().expand(1000, -1)
    counts = draw_tokens(logits, EVEN, SamplingOptions(**options)).bincount(minlength=4)
    assert (counts - torch.tensor(expected)).abs().max() <= 1


def test_a_prefix_is_kept_and_completed_as_it_was(prior):
    labels = torch.tensor([2, 0, 1])
    whole = sample_batch(prior, range(3), labels)
    for length in range(prior.token_spec.num_tokens + 1):
        again = sample_batch(prior, range(3), labels, prefix=whole[:, :length])
        assert torch.equal(again, whole)
    other = (whole[:, :1] + 1) % prior.token_spec.vocab_sizes[0]
    assert torch.equal(sample_batch(prior, range(3), labels, prefix=other)[:, :1], other)


def test_tokens_are_reported_as_they_come(prior):
    seen = []
    labels = torch.tensor([0, 1])
    final = sample_batch(
        prior,
        range(2),
        labels,
        on_token=lambda indices, k: seen.append((k, indices[:, :k].clone())),
    )
    assert [k for k, _ in seen] == list(range(1, prior.token_spec.num_tokens + 1))
    assert all(torch.equal(part, final[:, :k]) for k, part in seen)


def test_guidance(prior):
    labels = torch.tensor([0, 1, 2, 0])
    plain = sample_batch(prior, range(4), labels)
    no_class = sample_batch(prior, range(4), None)
    nearly_one = SamplingOptions(guidance=1 + 1e-9)
    assert torch.equal(sample_batch(prior, range(4), labels, options=nearly_one), plain)
    zero = SamplingOptions(guidance=0.0)
    assert torch.equal(sample_batch(prior, range(4), labels, options=zero), no_class)


def test_guidance_pulls_towards_the_class(prior):
    labels = torch.zeros(200, dtype=torch.int64)

    def evidence(options):
        tokens = sample_tokens(prior, 200, labels, options=options, batch_size=200)
        return (prior.log_prob(tokens, labels) - prior.log_prob(tokens)).mean()

    assert evidence(SamplingOptions(guidance=3.0)) > evidence(SamplingOptions())


def test_bad_input(prior, sharp):
    for options, message in [
        ({"temperature": 0.0}, "top_k=1"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"guidance": -1.0}, "guidance -1"),
    ]:
        with pytest.raises(InputError, match=message):
            SamplingOptions(**options)
    with pytest.raises(InputError, match=r"class 3 is outside 0\.\.2"):
        sample_tokens(prior, 1, torch.tensor([3]))
    with pytest.raises(InputError, match=r"labels of shape \(2,\) are not \(3,\)"):
        sample_tokens(prior, 3, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="needs labels"):
        sample_tokens(prior, 3, options=SamplingOptions(guidance=2.0))
    with pytest.raises(InputError, match="seed -1"):
        sample_tokens(prior, 1, torch.tensor([0]), seed=-1)
    with pytest.raises(TokenError, match="prefix of shape"):
        sample_batch(prior, [0], torch.tensor([0]), prefix=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(TokenError, match="index 99 of image 0 at place 0"):
        sample_batch(prior, [0], torch.tensor([0]), prefix=torch.full((1, 1), 99))
    always = create_prior("gpt", prior.token_spec, num_classes=3, **TINY)
    with pytest.raises(InputError, match="class_dropout"):
        sample_tokens(always, 1)
    with pytest.raises(InputError, match="class_dropout"):
        sample_tokens(always, 1, torch.tensor([0]), options=SamplingOptions(guidance=2.0))
