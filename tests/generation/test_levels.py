"""Levels predicted at once: what a place sees, how few steps it takes, and that it learns."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import ConfigError
from spectok_generation import create_prior, load_prior, sample_tokens
from spectok_generation.guidance import Predictor
from spectok_generation.priors.levels import LevelPlan
from spectok_generation.sampling import Known, SamplingOptions, sample_batch

SPECS = {
    "growing grids": TokenSpec((Level((1, 2), 2), Level((2, 2), 3)), prefix="levels"),
    "tree": TokenSpec(
        (Level((2,), 2), Level((2,), 2, "path"), Level((2,), 2, "path")), prefix="levels"
    ),
    "shrinking lists": TokenSpec((Level((3,), 2), Level((2,), 2, "position", 2))),
}
BY_LEVEL = {
    "num_layers": 2,
    "num_heads": 2,
    "width": 16,
    "dropout": 0.0,
    "num_classes": 2,
    "condition_dropout": 0.1,
    "predict": "level",
}


@pytest.fixture(params=SPECS)
def prior(request, sharp):
    torch.manual_seed(0)
    return sharp(create_prior("gpt", SPECS[request.param], **BY_LEVEL))


def every_sequence(spec):
    return torch.tensor(list(itertools.product(*map(range, spec.vocab_sizes))))


def test_probabilities_of_all_sequences_sum_to_one(prior):
    whole = every_sequence(prior.token_spec)
    found = prior.log_prob(whole, torch.zeros(len(whole), dtype=torch.int64))
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert found.std() > 0.3


def test_a_place_sees_the_levels_above_and_not_its_own(prior):
    spec, labels = prior.token_spec, torch.tensor([0, 1, 0])
    tokens = torch.stack([torch.randint(0, v, (3,)) for v in spec.vocab_sizes], dim=1)
    given = prior.check_condition(labels, 3)
    levels = torch.tensor(spec.level_of_place)
    with torch.no_grad():
        before = prior.logits(tokens, given)
        for place, size in enumerate(spec.vocab_sizes):
            other = tokens.clone()
            other[:, place] = (other[:, place] + 1) % size
            changed = (prior.logits(other, given) != before).any(2).all(0)
            below = levels > levels[place]
            later = (levels == 0) & (torch.arange(len(levels)) > place)
            allowed = below | later if levels[place] == 0 else below
            assert not changed[~allowed].any(), place
            covered = place in LevelPlan(spec).sources
            assert changed[allowed].all() or not covered, place


def test_one_step_for_each_level_below_the_first_and_the_same_numbers(prior, monkeypatch):
    spec, fed = prior.token_spec, []
    feed = prior._decode

    def counted(backbone, cache, inputs, *rest):
        fed.append(inputs.shape[1])
        return feed(backbone, cache, inputs, *rest)

    monkeypatch.setattr(prior, "_decode", counted)
    labels = torch.tensor([1, 0])
    tokens = sample_batch(prior, [0, 1], labels, seed=3)
    first = spec.levels[0].num_tokens
    assert fed == [1] * first + [level.num_tokens for level in spec.levels[1:]]
    given = prior.check_condition(labels, 2)
    state = prior.start(given)
    whole = prior.logits(tokens, given)
    for place, size in enumerate(spec.vocab_sizes):
        step = prior.next_logits(state, tokens[:, :place])
        assert torch.allclose(step, whole[:, place, :size], atol=1e-5), place


def test_any_place_can_be_asked_for_first(prior):
    spec, labels = prior.token_spec, torch.tensor([1, 0])
    tokens = sample_batch(prior, [0, 1], labels)
    given = prior.check_condition(labels, 2)
    whole = prior.logits(tokens, given)
    for place, size in enumerate(spec.vocab_sizes):
        found = prior.next_logits(prior.start(given), tokens[:, :place])
        assert torch.allclose(found, whole[:, place, :size], atol=1e-5), place


def test_guidance_may_begin_and_end_inside_a_level(prior):
    spec, labels = prior.token_spec, torch.tensor([1, 0])
    tokens = sample_batch(prior, [0, 1], labels)
    length = spec.num_tokens
    first = spec.levels[0].num_tokens
    interval = ((first + 1) / length, (length - 1) / length)
    predictor = Predictor(prior, labels, 2, scale=2.0, interval=interval)
    conditional = prior.logits(tokens, prior.check_condition(labels, 2))
    without = prior.logits(tokens, prior.null_condition(2))
    for place, size in enumerate(spec.vocab_sizes):
        guided = first + 1 <= place < length - 1
        wanted = conditional[:, place, :size]
        if guided:
            wanted = without[:, place, :size] + 2 * (wanted - without[:, place, :size])
        found = predictor.logits(tokens[:, :place])
        assert torch.allclose(found, wanted, atol=1e-4), (place, guided)


def test_an_image_depends_on_its_seed_alone_and_kept_tokens_stay(prior):
    labels = torch.arange(5) % 2
    whole = sample_tokens(prior, 5, labels, seed=1)
    assert torch.equal(whole, sample_tokens(prior, 5, labels, seed=1, batch_size=2))
    keep = torch.zeros_like(whole, dtype=torch.bool)
    keep[:, ::2] = True
    options = SamplingOptions(temperature=2.0)
    known = Known(whole, keep)
    redrawn = sample_tokens(prior, 5, labels, seed=2, known=known, options=options)
    assert torch.equal(redrawn[keep], whole[keep])


def test_drawn_tokens_have_the_probabilities_of_the_prior(sharp):
    torch.manual_seed(1)
    prior = sharp(create_prior("gpt", SPECS["tree"], **BY_LEVEL))
    count = 20_000
    drawn = sample_tokens(prior, count, torch.ones(count, dtype=torch.int64), batch_size=5_000)
    whole = every_sequence(prior.token_spec)
    wanted = prior.log_prob(whole, torch.ones(len(whole), dtype=torch.int64)).exp()
    powers = 2 ** torch.arange(drawn.shape[1] - 1, -1, -1)
    shares = torch.bincount((drawn * powers).sum(1), minlength=len(whole)) / count
    assert (shares - wanted).abs().max() < 4.5 * (wanted * (1 - wanted) / count).sqrt().max()


def test_it_learns_is_saved_and_loaded(tmp_path):
    spec = SPECS["growing grids"]
    torch.manual_seed(0)
    prior = create_prior("gpt", spec, **BY_LEVEL)
    # of two patterns, the first level says which: the second follows from it
    patterns = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 0, 0, 2, 2, 1]])
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(120):
        tokens = patterns[torch.randint(0, 2, (32,))]
        loss = prior(tokens, torch.zeros(32, dtype=torch.int64)).losses["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bits = -prior.eval().log_prob(patterns, torch.zeros(2, dtype=torch.int64)) / 0.6931
    assert bits.tolist() == pytest.approx([1, 1], abs=0.3)
    prior.save_pretrained(tmp_path)
    again = load_prior(tmp_path)
    assert again.config["predict"] == "level"
    labels = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(sample_tokens(again, 4, labels), sample_tokens(prior, 4, labels))


@pytest.mark.slow
def test_compiled_steps_give_the_same_tokens(sharp):
    torch.manual_seed(0)
    prior = sharp(create_prior("gpt", SPECS["growing grids"], **BY_LEVEL))
    labels = torch.tensor([0, 1])
    before = sample_tokens(prior, 2, labels)
    prior.compile_step()
    assert torch.equal(sample_tokens(prior, 2, labels), before)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (TokenSpec((Level((2, 2), 3),)), {}, "prior.predict: level needs tokens of several levels"),
        (
            TokenSpec((Level((2,), 2), Level((2,), 2)), order="position"),
            {},
            "prior.predict: level needs tokens in the order of their levels",
        ),
        (SPECS["growing grids"], {"order": "random"}, "set prior.order to raster"),
        (SPECS["growing grids"], {"predict": "levels"}, "prior.predict"),
        (SPECS["tree"], {"tied_embeddings": True}, "prior.tied_embeddings"),
    ],
)
def test_what_has_no_levels_is_refused(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        create_prior("gpt", spec, **BY_LEVEL | options)


def test_tied_weights_are_the_embeddings_and_halve_them():
    spec = TokenSpec((Level((6,), 32, "position", 6),))
    options = {"num_layers": 1, "num_heads": 2, "width": 16}
    torch.manual_seed(0)
    plain, tied = (create_prior("gpt", spec, tied_embeddings=t, **options) for t in (False, True))
    sizes = [sum(p.numel() for p in prior.parameters()) for prior in (plain, tied)]
    assert sizes[0] - sizes[1] == 6 * 32 * 16
    tokens = torch.randint(0, 32, (2, 6))
    tied(tokens).losses["nll"].backward()
    assert tied.backbone.wte.weight.grad.abs().sum(1).min() > 0  # codes that do not occur too
