"""MaskGIT: what it hides in training, what it sees, and how it settles tokens step by step."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from spectok import Level, TokenSpec
from spectok.errors import ConfigError, InputError, TokenError
from spectok.testing.small import small_tokenizer
from spectok.token_files import write_tokens
from spectok_generation import (
    DiffusionOptions,
    MaskedOptions,
    PriorCoder,
    SamplingOptions,
    create_prior,
    draw_images,
)
from spectok_generation.conditions import TextFeatures
from spectok_generation.drawing import draw_batch, make_options, spelled_out
from spectok_generation.masked import sample_masked
from spectok_generation.masked.masking import Masking, hidden_share
from spectok_generation.masked.sampling import choose, plan
from spectok_generation.records import tokenizer_record
from spectok_generation.sample_folder import read_samples
from spectok_generation.sampling import Known

TINY = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0}
GRID = TokenSpec((Level((2, 2), 3),))
LARGER = TokenSpec((Level((4, 4), 5),))
TREE = TokenSpec((Level((3,), 2), Level((3,), 2, "path"), Level((3,), 3, "path")))
LABELS = torch.tensor([2, 0, 1, 1])


def build(sharp, spec=LARGER, **options):
    torch.manual_seed(0)
    given = {"condition_dropout": 0.1} | TINY | options
    if "text" not in given:
        given.setdefault("num_classes", 3)
    return sharp(create_prior("maskgit", spec, **given))


@pytest.fixture
def prior(spec, sharp):
    return build(sharp, spec)


def some_tokens(spec, count=4):
    torch.manual_seed(1)
    return (torch.rand(count, spec.num_tokens) * torch.tensor(spec.vocab_sizes)).long()


def watch(prior, monkeypatch):
    """Return the list to which each call of the network adds the tokens and what it saw of them."""
    calls, compute = [], prior.logits

    def logits(indices, visible, condition):
        calls.append((indices.clone(), visible.clone()))
        return compute(indices, visible, condition)

    monkeypatch.setattr(prior, "logits", logits)
    return calls


# -- what is hidden --------------------------------------------------------------------------------


def test_the_number_of_hidden_places_follows_the_cosine():
    torch.manual_seed(0)
    hidden = (~Masking(LARGER).draw(20_000)).sum(1)
    expected = torch.ceil(16 * torch.cos(math.pi / 2 * (torch.arange(100_000) + 0.5) / 100_000))
    shares = (torch.bincount(x.long(), minlength=17) / len(x) for x in (hidden, expected))
    torch.testing.assert_close(*shares, atol=0.01, rtol=0)
    assert hidden_share(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_the_expected_loss_weighs_all_places_alike(spec):
    torch.manual_seed(0)
    masking = Masking(spec)
    visible = masking.draw(50_000)
    predicted = ~visible & masking.ready(visible)
    assert predicted.any(1).all()
    found = predicted.double().mean(0) * torch.tensor(masking.weights) * spec.num_tokens
    torch.testing.assert_close(found, torch.ones_like(found), atol=0.04, rtol=0)


def test_what_hangs_below_a_hidden_place_is_hidden():
    masking = Masking(TREE)
    assert masking.depths == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    known = torch.ones(1, 9, dtype=torch.bool)
    known[0, 1] = known[0, 5] = False
    assert masking.visible(known).tolist() == [
        [True, False, True, True, False, False, True, False, False]
    ]
    visible = masking.draw(500)
    assert torch.equal(masking.visible(visible), visible)
    assert not (visible & ~masking.ready(visible)).any()
    for depth in masking.depths[1:]:  # leaves are predicted with all above them known, as well
        assert (visible[:, : depth[0]].all(1) & ~visible[:, list(depth)].all(1)).any()


# -- what is seen ----------------------------------------------------------------------------------


def test_every_place_sees_all_that_is_visible_and_nothing_else(prior, checked_shapes):
    spec, condition = prior.token_spec, prior.check_condition(LABELS, 4)
    tokens = some_tokens(spec)
    sizes, masking = torch.tensor(spec.vocab_sizes), prior.masking
    others = (tokens + 1) % sizes
    visible = masking.draw(4)
    with torch.no_grad():
        wanted = prior.logits(tokens, visible, condition)
        found = prior.logits(torch.where(visible, tokens, others), visible, condition)
        assert torch.equal(found, wanted)
        everything = torch.ones_like(visible)
        wanted = prior.logits(tokens, everything, condition)
        for place in range(spec.num_tokens):
            changed = tokens.clone()
            changed[:, place] = others[:, place]
            found = prior.logits(changed, everything, condition)
            fits = wanted.isfinite()
            moved = ((found - wanted).abs() > 1e-6) & fits
            assert moved.any(2).all()  # before it and after it
    assert torch.equal(fits, (torch.arange(fits.shape[2]) < sizes[:, None]).expand_as(fits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_hidden_places(sharp, monkeypatch, smoothing):
    prior = build(sharp, GRID, label_smoothing=smoothing).train()
    tokens = some_tokens(GRID, 3)
    labels = torch.tensor([0, 1, 2])
    visible = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    monkeypatch.setattr(prior.masking, "draw", lambda count: visible)
    monkeypatch.setattr(prior, "condition_dropout", 0.0)
    output = prior(tokens, labels)
    logits = prior.logits(tokens, visible, labels)[~visible]
    each = F.cross_entropy(logits, tokens[~visible], reduction="none", label_smoothing=smoothing)
    chance = sum(2 / math.pi * math.acos(j / 4) for j in range(4)) / 4
    expected = each.sum() / (3 * 4 * chance)
    torch.testing.assert_close(output.losses["masked_nll"], expected)
    plain = F.cross_entropy(logits, tokens[~visible]) / math.log(2)
    torch.testing.assert_close(output.metrics["masked_bits_per_token"], plain.detach())


# -- how it is drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch(prior, guidance, checked_shapes):
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    how = {"seed": 5, "options": MaskedOptions(guidance=guidance)}
    together = sample_masked(prior, range(7), labels, **how)
    prior.token_spec.validate(together)
    for numbers in ([4], [6, 0], [3, 2, 1]):
        alone = sample_masked(prior, numbers, labels[numbers], **how)
        assert torch.equal(alone, together[numbers])
    assert not torch.equal(sample_masked(prior, range(7), labels, seed=6), together)


def test_a_settled_token_never_changes(prior, monkeypatch):
    calls = watch(prior, monkeypatch)
    torch.manual_seed(3)
    tokens = some_tokens(prior.token_spec)
    known = Known(tokens, torch.rand(tokens.shape) < 0.4)
    final = sample_masked(prior, range(4), LABELS, known=known)
    assert torch.equal(final[known.keep], tokens[known.keep])
    before = torch.zeros_like(known.keep)
    for indices, visible in calls:
        assert torch.equal(indices[known.keep], tokens[known.keep])
        assert torch.equal(indices[visible], final[visible])
        assert not (before & ~visible).any()
        assert not (visible & ~prior.masking.ready(visible)).any()
        before = visible


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_last_token_is_drawn_from_what_the_model_says(prior, temperature):
    """With all tokens but one kept, drawn ones have the model's probabilities (chi-square)."""
    spec, count = prior.token_spec, 1000
    one = some_tokens(spec, 1)
    for place in (0, spec.num_tokens - 1):
        keep = torch.arange(spec.num_tokens)[None] != place
        visible = prior.masking.visible(keep)
        with torch.no_grad():
            logits = prior.logits(one, visible, torch.tensor([1]))[0, place]
        chances = (logits[: spec.vocab_sizes[place]].double() / temperature).softmax(0)
        known = Known(one.expand(count, -1), keep.expand(count, -1))
        options = MaskedOptions(temperature=temperature)
        labels = torch.ones(count, dtype=torch.int64)
        drawn = sample_masked(prior, range(count), labels, options=options, known=known)
        counts = drawn[:, place].bincount(minlength=len(chances)).double()
        statistic = ((counts - count * chances) ** 2 / (count * chances)).sum().item()
        assert statistic < 22  # of at most 3 degrees of freedom: above once in 15,000


def test_tokens_become_known_by_the_cosine(sharp, monkeypatch):
    prior = build(sharp)
    calls = watch(prior, monkeypatch)
    sample_masked(prior, range(2), LABELS[:2], options=MaskedOptions(num_steps=5))
    hidden = [(~visible).sum(1).tolist() for _, visible in calls]
    expected = [16, *(math.floor(16 * math.cos(math.pi * k / 10)) for k in range(1, 5))]
    assert hidden == [[n, n] for n in expected]


@pytest.mark.parametrize(("num_steps", "expected"), [(1, 1), (4, 4), (8, 8), (50, 16)])
def test_no_step_settles_nothing(sharp, monkeypatch, num_steps, expected):
    prior = build(sharp)
    calls = watch(prior, monkeypatch)
    sample_masked(prior, [0], LABELS[:1], options=MaskedOptions(num_steps=num_steps))
    hidden = [int((~visible).sum()) for _, visible in calls]
    assert len(hidden) == expected
    assert sorted(set(hidden), reverse=True) == hidden


def test_few_tokens_take_few_steps_and_none_takes_none(sharp, monkeypatch):
    prior = build(sharp)
    calls = watch(prior, monkeypatch)
    tokens = some_tokens(LARGER)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    assert torch.equal(sample_masked(prior, range(4), LABELS, known=Known(tokens, keep)), tokens)
    assert not calls
    keep[0, 3] = keep[1, :2] = False
    both = sample_masked(prior, range(4), LABELS, known=Known(tokens, keep))
    assert len(calls) == 2
    first = Known(tokens[:1], keep[:1])  # a batch with more to draw does not change an image
    assert torch.equal(sample_masked(prior, [0], LABELS[:1], known=first), both[:1])


@pytest.mark.parametrize("order", ["level", "position"])
def test_a_tree_is_drawn_from_its_root_in_as_many_steps_as_asked_for(sharp, monkeypatch, order):
    spec = TokenSpec(TREE.levels, order=order)
    prior = build(sharp, spec)
    calls = watch(prior, monkeypatch)
    for num_steps in (3, 4, 5):
        calls.clear()
        sample_masked(prior, [0], LABELS[:1], options=MaskedOptions(num_steps=num_steps))
        assert len(calls) == num_steps
        assert int((~calls[-1][1]).sum()) > 0
    leaves = torch.tensor(spec.level_of_place) == 2
    calls.clear()
    known = Known(some_tokens(spec, 1), ~leaves[None])
    sample_masked(prior, [0], LABELS[:1], known=known)
    assert len(calls) == 3


def test_a_kept_leaf_of_a_branch_that_is_drawn_is_kept_and_not_seen_before(sharp, monkeypatch):
    prior = build(sharp, TREE)
    calls = watch(prior, monkeypatch)
    tokens = some_tokens(TREE)
    keep = (torch.arange(9) > 2).expand(4, -1)
    final = sample_masked(prior, range(4), LABELS, known=Known(tokens, keep))
    assert torch.equal(final[keep], tokens[keep])
    assert not calls[0][1].any()
    assert calls[1][1][:, 3:].any()


def test_the_most_confident_are_settled_first():
    confidence = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    settled = torch.tensor([[False, False, False, False], [True, False, False, False]])
    still_open = torch.tensor([[2, 1]])
    chosen = choose(confidence, ~settled, settled, still_open, [(0, 1, 2, 3)])
    assert chosen.tolist() == [[False, True, False, True], [False, True, True, False]]
    waits = torch.tensor([[True, False, True, True], [False, True, False, False]])
    chosen = choose(confidence, waits, settled, still_open, [(0, 1, 2, 3)])
    assert chosen.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_the_plan_never_stands_still():
    keep = torch.zeros(1, 5, dtype=torch.bool)
    assert plan(keep, [(0, 1, 2, 3, 4)], 8).flatten().tolist() == [5, 4, 3, 2, 1, 0, 0, 0, 0]


def test_choice_temperature_is_the_randomness_of_the_order(sharp, monkeypatch):
    """With 0, the first place settled is that of the likeliest token; noise makes it any."""
    prior = build(sharp)
    calls = watch(prior, monkeypatch)
    labels, numbers = torch.ones(64, dtype=torch.int64), range(64)
    first = {}
    for choice in (0.0, 100.0):
        calls.clear()
        options = MaskedOptions(top_k=1, num_steps=16, choice_temperature=choice)
        sample_masked(prior, numbers, labels, options=options)
        first[choice] = calls[1][1].float().argmax(1)
    nothing = torch.zeros(1, 16, dtype=torch.bool)
    with torch.no_grad():
        chances = prior.logits(torch.zeros(1, 16).long(), nothing, labels[:1]).softmax(-1)
    assert (first[0.0] == chances[0].amax(1).argmax()).all()
    assert len(first[100.0].unique()) > 8


def test_guidance(prior):
    numbers, how = range(24), {"condition": LABELS.repeat(6), "seed": 3}
    plain = sample_masked(prior, numbers, **how)
    nearly_one = MaskedOptions(guidance=1 + 1e-9)
    assert torch.equal(sample_masked(prior, numbers, options=nearly_one, **how), plain)
    without = sample_masked(prior, numbers, seed=3)
    zero = MaskedOptions(guidance=0.0)
    assert torch.equal(sample_masked(prior, numbers, options=zero, **how), without)
    strong = MaskedOptions(guidance=5.0)
    assert not torch.equal(sample_masked(prior, numbers, options=strong, **how), plain)


def test_guidance_outside_its_interval_runs_one_sequence_per_image(sharp, monkeypatch):
    prior = build(sharp)
    calls = watch(prior, monkeypatch)
    options = MaskedOptions(guidance=3.0, guidance_interval=(0.25, 0.75))
    sample_masked(prior, range(4), LABELS, options=options)
    assert [len(indices) for indices, _ in calls] == [4, 4, 8, 8, 8, 8, 4, 4]


def test_a_text_is_read_and_what_is_beyond_its_end_is_not(sharp):
    prior = build(sharp, text={"width": 6})
    torch.manual_seed(4)
    features, numbers = torch.randn(16, 3, 6), range(16)
    mask = (torch.arange(3) < torch.tensor([1, 3, 2, 3])[:, None]).repeat(4, 1)
    drawn = sample_masked(prior, numbers, TextFeatures(features, mask))
    padding = TextFeatures(torch.where(mask[..., None], features, 9.0), mask)
    assert torch.equal(sample_masked(prior, numbers, padding), drawn)
    other = TextFeatures(features.flip(0), mask)
    assert not torch.equal(sample_masked(prior, numbers, other), drawn)
    none = TextFeatures.none(16, 6)
    assert torch.equal(sample_masked(prior, numbers, none), sample_masked(prior, numbers))


@pytest.mark.slow
def test_it_learns_what_belongs_together():
    torch.manual_seed(0)
    patterns = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1], [1, 0, 0, 2]])
    options = {"num_steps": 4, "label_smoothing": 0.0, "choice_temperature": 1.0}
    prior = create_prior("maskgit", GRID, **TINY, **options)
    optimizer = torch.optim.AdamW(prior.train().parameters(), lr=3e-3)
    for _ in range(350):
        loss = prior(patterns[torch.randint(3, (32,))]).losses["masked_nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = sample_masked(prior, range(300))
    found = (drawn[:, None] == patterns).all(2)
    assert found.any(1).float().mean() > 0.85
    assert found.float().mean(0).min() > 0.2
    assert 0.8 < prior.eval().log_prob(patterns, num_draws=64).exp().sum() < 1.05


def test_there_are_no_more_steps_than_tokens(sharp, monkeypatch):
    prior = build(sharp, GRID)
    calls = watch(prior, monkeypatch)
    options = MaskedOptions(num_steps=10**6)
    tokens = sample_masked(prior, range(2), LABELS[:2], options=options)
    assert len(calls) == 4
    assert spelled_out(prior, options).num_steps == 4
    assert tokens.shape == (2, 4)
    tree = build(sharp, TREE)
    assert spelled_out(tree, options).num_steps == 5
    larger = build(sharp)
    at_the_end, always = (
        [
            sample_masked(larger, range(8), LABELS[[0] * 8], options=MaskedOptions(**how))
            for how in (
                {"num_steps": steps, "guidance": 5.0, "guidance_interval": (begin, 1.0)}
                for steps in (16, 40)
            )
        ]
        for begin in (0.5, 0.0)
    )
    assert torch.equal(*at_the_end)
    assert torch.equal(*always)
    unguided = MaskedOptions(num_steps=16)
    plain = sample_masked(larger, range(8), LABELS[[0] * 8], options=unguided)
    assert not torch.equal(at_the_end[0], plain)


@pytest.mark.parametrize("number", [0, -1, 2.5, "4", math.nan, True])
def test_steps_and_draws_are_counted(sharp, number):
    with pytest.raises(InputError, match=r"num_steps .* must be a whole number, at least 1"):
        MaskedOptions(num_steps=number)
    with pytest.raises(InputError, match=r"num_draws .* must be a whole number, at least 1"):
        build(sharp, GRID).log_prob(some_tokens(GRID), LABELS, num_draws=number)


def test_what_does_not_belong_to_it_is_refused(sharp):
    prior = build(sharp, GRID)
    with pytest.raises(InputError, match="a MaskGIT draws tokens in steps; give MaskedOptions"):
        sample_masked(prior, range(2), LABELS[:2], options=SamplingOptions())
    with pytest.raises(InputError, match="1 seeds, and image number 1"):
        sample_masked(prior, range(2), LABELS[:2], seed=[3])
    gpt = create_prior("gpt", GRID, **TINY, num_classes=3)
    with pytest.raises(InputError, match="a GPT does not draw in steps; use draw_images"):
        sample_masked(gpt, range(2), LABELS[:2])
    assert prior.log_prob(some_tokens(GRID)[:0], LABELS[:0]).shape == (0,)


# -- the bound on its likelihood -------------------------------------------------------------------


@torch.no_grad()
def log_probs_of_orders(prior, tokens, condition):
    """Return log p of each image under every order of drawing one token at a time."""
    found = []
    for order in itertools.permutations(range(tokens.shape[1])):
        total = torch.zeros(len(tokens), dtype=torch.float64)
        for step, place in enumerate(order):
            visible = torch.zeros_like(tokens, dtype=torch.bool)
            visible[:, list(order[:step])] = True
            logits = prior.logits(tokens, visible, condition).double().log_softmax(-1)
            total += logits[:, place].gather(1, tokens[:, place, None]).squeeze(1)
        found.append(total)
    return torch.stack(found)


def test_the_likelihood_is_a_bound(sharp):
    prior = build(sharp, GRID)
    tokens = some_tokens(GRID)
    exact = log_probs_of_orders(prior, tokens, LABELS)
    expected, mixture = exact.mean(0), exact.exp().mean(0).log()
    found = prior.log_prob(tokens, LABELS, num_draws=256).double()
    torch.testing.assert_close(found, expected, atol=0.4, rtol=0)
    assert (expected < mixture).all()
    few = prior.log_prob(tokens, LABELS)
    assert torch.equal(prior.log_prob(tokens[1:2], LABELS[1:2]), few[1:2])


def test_the_bound_of_a_tree_takes_level_after_level(sharp):
    """A tree of one place has one order of drawing, so the bound is exact."""
    spec = TokenSpec((Level((1,), 4), Level((1,), 3, "path"), Level((1,), 2, "path")))
    prior = build(sharp, spec)
    every = torch.cartesian_prod(*(torch.arange(size) for size in spec.vocab_sizes))
    labels = torch.ones(len(every), dtype=torch.int64)
    total = prior.log_prob(every, labels).double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(1)
    tokenizer = small_tokenizer("vqvae").eval()
    options = {"tokenizer": tokenizer_record(tokenizer), **TINY}
    return create_prior("maskgit", tokenizer.token_spec, **options).eval(), tokenizer


def test_it_draws_and_edits_images_like_any_prior(pair):
    prior, tokenizer = pair
    images = torch.rand(3, *tokenizer.image_shape) * 2 - 1
    tokens = tokenizer.encode(images)
    keep = torch.rand(tokens.shape) < 0.5
    edited = draw_images(prior, tokenizer, 3, known=Known(tokens, keep), batch_size=2)
    indices = sample_masked(prior, range(3), known=Known(tokens, keep))
    assert torch.equal(indices[keep], tokens[keep])
    with torch.no_grad():
        torch.testing.assert_close(edited, tokenizer.decode(indices))


def test_options_of_other_priors_are_refused(pair):
    prior, tokenizer = pair
    for options, message in [
        (SamplingOptions(), "a MaskGIT draws tokens in steps; give MaskedOptions"),
        (DiffusionOptions(), "a MaskGIT does not draw latents; give MaskedOptions"),
    ]:
        with pytest.raises(InputError, match=message):
            draw_batch(prior, tokenizer, [0], options=options)
    with pytest.raises(InputError, match="MaskGIT does not take scheduler=ddim, only temperature"):
        make_options(prior, {"scheduler": "ddim"})
    gpt = create_prior("gpt", tokenizer.token_spec, **TINY)
    with pytest.raises(InputError, match="a GPT does not draw tokens in steps; give Sampling"):
        draw_batch(gpt, tokenizer, [0], options=MaskedOptions())
    with pytest.raises(InputError, match="GPT does not take num_steps=4"):
        make_options(gpt, {"num_steps": 4})
    found = spelled_out(prior, make_options(prior, {"num_steps": 3}))
    assert isinstance(found, MaskedOptions)
    assert (found.num_steps, found.choice_temperature) == (3, 4.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps 0 must be a whole number, at least 1"),
        ({"choice_temperature": -1.0}, "choice_temperature -1.0 must be at least 0"),
        ({"choice_temperature": math.inf}, "choice_temperature inf must be"),
        ({"temperature": 0.0}, "temperature 0.0 must be at least 1e-06"),
        ({"choice_temperature": 1e300}, r"choice_temperature 1e\+300 must be"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MaskedOptions(**options)


@pytest.mark.parametrize("value", [-1.0, 2e6, math.inf, math.nan])
def test_a_recipe_whose_order_cannot_be_drawn_is_refused_before_training(value):
    with pytest.raises(ConfigError, match=r"^prior\.choice_temperature: "):
        create_prior("maskgit", GRID, choice_temperature=value, **TINY)


def test_what_does_not_fit_is_refused(sharp, pair):
    with pytest.raises(ConfigError, match=r"prior\.num_steps 2 is less than the 3 levels"):
        create_prior("maskgit", TREE, num_steps=2, **TINY)
    tree = build(sharp, TREE)
    with pytest.raises(InputError, match=r"^num_steps 2 is less than the 3 levels"):
        sample_masked(tree, [0], LABELS[:1], options=MaskedOptions(num_steps=2))
    with pytest.raises(ConfigError, match="classes or a text encoder, not both"):
        create_prior("maskgit", GRID, num_classes=2, text={"width": 4}, **TINY)
    with pytest.raises(ConfigError, match=r"not divisible by prior\.num_heads"):
        create_prior("maskgit", GRID, width=16, num_heads=3)
    always = build(sharp, condition_dropout=0.0)
    with pytest.raises(InputError, match="with the class always given"):
        sample_masked(always, [0])
    with pytest.raises(InputError, match="with the class always given"):
        sample_masked(always, [0], LABELS[:1], options=MaskedOptions(guidance=2.0))
    wrong = Known(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(TokenError, match=r"known tokens of shape \(2, 3\)"):
        sample_masked(always, range(2), LABELS[:2], known=wrong)
    with pytest.raises(InputError, match="seed -1"):
        sample_masked(always, [0], LABELS[:1], seed=-1)
    with pytest.raises(InputError, match=r"do not support torch\.compile"):
        always.compile_step()
    with torch.no_grad():
        always.head.biases[0].fill_(torch.nan)
    with pytest.raises(InputError, match="not finite: its weights are damaged"):
        sample_masked(always, [0], LABELS[:1])


def test_it_does_not_code_files(pair):
    pytest.importorskip("constriction")
    with pytest.raises(InputError, match="a MaskGIT does not give the probability of each token"):
        PriorCoder(pair[0])


def test_the_command_redraws_what_is_not_kept(pair, tmp_path, spectok):
    prior, tokenizer = pair
    prior.save_pretrained(tmp_path / "prior")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(5)
    spec, shape = tokenizer.token_spec, tokenizer.image_shape
    tokens = tokenizer.encode(torch.rand(2, *shape) * 2 - 1)
    write_tokens(tmp_path / "tokens.npz", tokens.numpy(), ["a", "b"], spec)
    keep = torch.zeros_like(tokens, dtype=torch.bool)
    keep[:, 1:3] = keep[:, 5:] = True
    words = ["sample", "--prior", tmp_path / "prior", "--tokenizer", tmp_path / "tokenizer"]
    words += ["--num-images", 2, "--num-steps", 3, "--choice-temperature", 0, "--seed", 4]
    words += ["--complete", tmp_path / "tokens.npz", "--keep", f"1:3,5:{spec.num_tokens}"]
    status, _, err = spectok(*words, "--out", tmp_path / "images")
    assert status == 0, err
    options = MaskedOptions(num_steps=3, choice_temperature=0.0)
    known = Known(tokens, keep)
    indices = sample_masked(prior, range(2), seed=4, options=options, known=known)
    assert torch.equal(indices[keep], tokens[keep])
    drawn = next(read_samples(tmp_path / "images", 2, shape))
    with torch.no_grad():
        expected = tokenizer.decode(indices).clamp(-1, 1)
    torch.testing.assert_close(drawn, expected, atol=1 / 127, rtol=0)


def test_the_command_says_that_its_likelihood_is_a_bound(pair, tmp_path, spectok):
    prior, tokenizer = pair
    prior.save_pretrained(tmp_path / "prior")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = ["eval", tmp_path / "prior", "--likelihood", "--tokenizer", tmp_path / "tokenizer"]
    words += ["--data", "digits", "--limit", 3, "--out", tmp_path / "bits.json"]
    status, out, err = spectok(*words)
    assert status == 0, err
    assert "bound on the likelihood of the tokens, without a condition" in out
    assert json.loads((tmp_path / "bits.json").read_text())["likelihood"] == "bound"
