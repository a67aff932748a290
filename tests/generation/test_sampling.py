"""The sampler: its randomness, its filters, and what it refuses."""

import math
import os
from pathlib import Path

import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import InputError, TokenError
from spectok.training.launch import accelerated
from spectok.training.train_config import TrainConfig
from spectok_generation import SamplingOptions, create_prior, sample_tokens
from spectok_generation.conditions import TextFeatures
from spectok_generation.guidance import Predictor
from spectok_generation.sampling import Known, draw_tokens, image_uniforms, sample_batch

TINY = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0}
EVEN = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


PRIORS = {
    "gpt": TINY,
    "pixelcnn": {"num_layers": 3, "width": 8, "first_kernel": 3, "head_width": 12},
}


@pytest.fixture(params=PRIORS)
def prior(request, spec, sharp):
    options = {"num_classes": 3, "condition_dropout": 0.1} | PRIORS[request.param]
    return sharp(create_prior(request.param, spec, **options))


def test_an_image_does_not_depend_on_its_batch(prior, checked_shapes):
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    together = sample_tokens(prior, 7, labels, seed=5)
    assert torch.equal(sample_tokens(prior, 7, labels, seed=5, batch_size=5), together)
    assert torch.equal(sample_tokens(prior, 7, labels, seed=5, batch_size=1), together)
    alone = sample_batch(prior, [4], labels[4:5], seed=5)
    assert torch.equal(alone[0], together[4])
    prior.token_spec.validate(together)


def sample_rank(prior, condition, file):
    with accelerated(TrainConfig(), Path()):
        tokens = sample_tokens(prior, len(condition), condition)
    if os.environ["RANK"] == "1":
        torch.save(tokens, file)


@pytest.mark.parametrize("name", ["gpt", "pixelcnn", "cat"])
def test_two_processes_draw_what_one_draws(name, sharp, fork_ranks, tmp_path):
    spec = TokenSpec((Level((2, 2), 5), Level((2, 4), 3)))
    if name == "cat":
        given = {"text": {"fingerprint": "x", "path": "a test", "width": 6}}
        mask = torch.arange(3) < torch.tensor([1, 3, 2, 3, 1])[:, None]
        condition = TextFeatures(torch.randn(5, 3, 6), mask)
    else:
        given, condition = {"num_classes": 3}, torch.tensor([0, 1, 2, 0, 1])
    prior = sharp(create_prior(name, spec, **given, **PRIORS.get(name, TINY)))
    assert fork_ranks(sample_rank, prior, condition, tmp_path / "tokens.pt") == [0, 0]
    alone = sample_tokens(prior, 5, condition)
    assert torch.equal(torch.load(tmp_path / "tokens.pt"), alone)
    assert len(alone.unique(dim=0)) > 1


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


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_of_equally_likely_codes_those_of_lowest_index_are_kept(k):
    equal = torch.zeros(1000, 4)
    assert draw_tokens(equal, EVEN, SamplingOptions(top_k=k)).unique().tolist() == [0, 1, 2, 3][:k]
    some = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0]).expand(1000, -1)
    expected = [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    found = draw_tokens(some, EVEN, SamplingOptions(top_k=k)).unique().tolist()
    assert found == (expected[k - 1] if k < 5 else [0, 1, 2, 3, 4])
    assert draw_tokens(equal, EVEN, SamplingOptions(top_p=0.26)).unique().tolist() == [0, 1]


def test_a_prior_that_computes_nothing_finite_draws_nothing(prior):
    with torch.no_grad():
        list(prior.parameters())[-1].fill_(torch.nan)
    with pytest.raises(InputError, match="not finite: its weights are damaged, or its type"):
        sample_tokens(prior, 2, torch.tensor([0, 1]))


def test_a_prefix_is_kept_and_completed_as_it_was(prior):
    labels = torch.tensor([2, 0, 1])
    whole = sample_batch(prior, range(3), labels)
    for length in range(prior.token_spec.num_tokens + 1):
        known = Known.prefix(whole[:, :length], whole.shape[1])
        assert torch.equal(sample_batch(prior, range(3), labels, known=known), whole)
    other = (whole[:, :1] + 1) % prior.token_spec.vocab_sizes[0]
    known = Known.prefix(other, whole.shape[1])
    assert torch.equal(sample_batch(prior, range(3), labels, known=known)[:, :1], other)


def test_known_tokens_are_kept_anywhere_and_count(prior):
    """Keeping what would have been drawn changes nothing; keeping other tokens changes the rest."""
    labels = torch.tensor([2, 0, 1])
    whole = sample_batch(prior, range(3), labels)
    keep = torch.rand(whole.shape) < 0.5
    drawn_anyway = Known(torch.where(keep, whole, -5), keep)
    assert torch.equal(sample_batch(prior, range(3), labels, known=drawn_anyway), whole)
    assert torch.equal(sample_tokens(prior, 3, labels, batch_size=2, known=drawn_anyway), whole)

    sizes = torch.tensor(prior.token_spec.vocab_sizes)
    known = Known((whole + 1) % sizes, torch.arange(len(sizes)).expand_as(whole) == 1)
    other = sample_batch(prior, range(3), labels, known=known)
    assert torch.equal(other[known.keep], known.indices[known.keep])
    assert torch.equal(other[:, 0], whole[:, 0])
    prefix = Known.prefix(other[:, :2], len(sizes))
    assert torch.equal(sample_batch(prior, range(3), labels, known=prefix), other)


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


def test_guided_logits_go_beyond_the_condition_in_proportion_to_the_scale(prior):
    labels, tokens = torch.tensor([0, 1, 2, 0]), torch.zeros(4, 0, dtype=torch.int64)
    with torch.no_grad():
        without, conditional, guided = (
            Predictor(prior, labels, 4, scale=scale).logits(tokens) for scale in (0.0, 1.0, 3.0)
        )
    assert (conditional - without).abs().max() > 0.01
    assert torch.allclose(guided, without + 3 * (conditional - without), atol=1e-5)


def test_guidance_ends_and_begins_where_told(prior):
    """Within an interval tokens are those of guidance, outside of it those of no guidance."""
    length, labels = prior.token_spec.num_tokens, torch.tensor([0, 1, 2, 0])
    guided, batches = SamplingOptions(guidance=4.0), []
    plain_step = prior.next_logits

    def next_logits(state, indices):
        batches.append(len(indices))
        return plain_step(state, indices)

    prior.next_logits = next_logits
    everywhere = sample_batch(prior, range(4), labels, options=guided)
    assert batches == [8] * length
    for begin, end in ((0, 1), (0, length - 1), (1, length), (1, length - 1)):
        batches.clear()
        shares = (begin / length, end / length)
        options = SamplingOptions(guidance=4.0, guidance_interval=shares)
        tokens = sample_batch(prior, range(4), labels, options=options)
        assert batches == [8 if begin <= place < end else 4 for place in range(length)]
        parts = [
            (0, begin, SamplingOptions()),
            (begin, end, guided),
            (end, length, SamplingOptions()),
        ]
        for first, last, alone in parts:
            known = Known.prefix(tokens[:, :first], length)
            expected = sample_batch(prior, range(4), labels, options=alone, known=known)
            assert torch.equal(tokens[:, first:last], expected[:, first:last])
        if begin == 0:
            assert torch.equal(tokens[:, :end], everywhere[:, :end])


def test_an_interval_begins_and_ends_at_the_nearest_place():
    options = {"num_classes": 3, "condition_dropout": 0.1}
    prior = create_prior("gpt", TokenSpec((Level((6,), 4),)), **options, **TINY)
    guided = Predictor(prior, torch.tensor([0]), 1, scale=2.0, interval=(0.3, 0.7)).guided
    assert guided == range(2, 4)  # of 1.8 and 4.2


def test_guidance_pulls_towards_the_class(prior):
    labels = torch.zeros(200, dtype=torch.int64)

    def evidence(options):
        tokens = sample_tokens(prior, 200, labels, options=options, batch_size=200)
        return (prior.log_prob(tokens, labels) - prior.log_prob(tokens)).mean()

    assert evidence(SamplingOptions(guidance=3.0)) > evidence(SamplingOptions())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cross", "prefix"])
def test_compiled_steps_of_the_released_block_draw_the_same_tokens(form, sharp):
    spec, text = TokenSpec((Level((3, 3), 7),)), {"path": "a test", "width": 6}
    options = {"attention": "multi_query", "positions": "relative_2d", "block": "released"}
    made = create_prior("cat", spec, text=text, text_conditioning=form, **TINY, **options)
    prior, mask = sharp(made), torch.tensor([[True, False], [True, True]])
    given = TextFeatures(torch.randn(2, 2, 6), mask)
    expected = sample_batch(prior, range(2), given)
    prior.compile_step()
    assert torch.equal(sample_batch(prior, range(2), given), expected)


@pytest.mark.slow
def test_compiled_steps_draw_the_same_tokens(sharp, monkeypatch):
    spec = TokenSpec((Level((3, 3), 7),))
    prior = sharp(create_prior("gpt", spec, num_classes=2, **TINY))
    labels = torch.tensor([0, 1, 1])
    known = Known.prefix(torch.tensor([[1, 2]]).expand(3, -1), 9)  # the first step is a longer one
    expected = sample_batch(prior, range(3), labels, known=known)
    prior.compile_step()
    assert torch.equal(sample_batch(prior, range(3), labels, known=known), expected)

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    other = create_prior("gpt", spec, **TINY | {"width": 18})
    other.compile_step()
    with pytest.raises(InputError, match=r"torch\.compile does not work on this machine"):
        sample_batch(other, [0])


def test_a_prior_without_equal_steps_is_not_compiled(spec):
    with pytest.raises(InputError, match="do not support torch"):
        create_prior("pixelcnn", spec, **PRIORS["pixelcnn"]).compile_step()


def test_the_lowest_temperature_draws_the_likeliest_code():
    logits = torch.tensor([[5e3, 5e3 + 1, -torch.inf], [-1e4, -1.1e4, -9e3]])
    options = SamplingOptions(temperature=1e-6)
    assert draw_tokens(logits, torch.tensor([0.1, 0.9]), options).tolist() == [1, 2]


def test_bad_input(prior, sharp):
    for options, message in [
        ({"temperature": 0.0}, "top_k=1"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"guidance": -1.0}, "guidance -1"),
        ({"guidance": math.nan}, "guidance nan must be at least 0 and at most 1,000,000"),
        ({"guidance": 1e300}, r"guidance 1e\+300 must be"),
        ({"temperature": math.inf}, "temperature inf must be at least 1e-06 and finite"),
        ({"temperature": 1e-310}, "temperature 1e-310 must be at least 1e-06"),
        ({"guidance_interval": (0.5, 0.5)}, r"guidance_interval 0.5\.\.0.5"),
        ({"guidance_interval": (0.0, 1.5)}, "two rising fractions"),
    ]:
        with pytest.raises(InputError, match=message):
            SamplingOptions(**options)
    with pytest.raises(InputError, match=r"class 3 is outside 0\.\.2"):
        sample_tokens(prior, 1, torch.tensor([3]))
    with pytest.raises(InputError, match=r"labels of shape \(2,\) are not \(3,\)"):
        sample_tokens(prior, 3, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="needs labels"):
        sample_tokens(prior, 3, options=SamplingOptions(guidance=2.0))
    with pytest.raises(InputError, match="num_images -1 and batch_size 64 must be at least 1"):
        sample_tokens(prior, -1)
    with pytest.raises(InputError, match="num_images 0"):
        sample_batch(prior, [])
    zeros = torch.zeros(1, prior.token_spec.num_tokens, dtype=torch.int64)
    with pytest.raises(TokenError, match=r"torch\.int64; it must be bool"):
        sample_batch(prior, [0], known=Known(zeros, zeros))
    with pytest.raises(InputError, match="seed -1"):
        sample_tokens(prior, 1, torch.tensor([0]), seed=-1)
    length, labels = prior.token_spec.num_tokens, torch.tensor([0])
    for first, message in [
        (torch.zeros(2, 1, dtype=torch.int64), r"known tokens of shape \(2, "),
        (torch.zeros(1, length + 1, dtype=torch.int64), rf"\(1, {length + 1}\)"),
        (torch.full((1, 1), 99), "index 99 of image 0 at place 0"),
    ]:
        with pytest.raises(TokenError, match=message):
            sample_batch(prior, [0], labels, known=Known.prefix(first, length))
    with pytest.raises(TokenError, match="known tokens"):
        sample_tokens(prior, 2, known=Known.prefix(first, length))
    always = create_prior("gpt", prior.token_spec, num_classes=3, **TINY)
    with pytest.raises(InputError, match="condition_dropout"):
        sample_tokens(always, 1)
    with pytest.raises(InputError, match="condition_dropout"):
        sample_tokens(always, 1, torch.tensor([0]), options=SamplingOptions(guidance=2.0))
