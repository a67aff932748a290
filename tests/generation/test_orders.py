"""Training in random orders: what is permuted, what a place sees, how the orders end."""

from __future__ import annotations

import json
import math

import pytest
import torch

from spectok import Level, TokenSpec, distributed
from spectok.distributed import shared_draws
from spectok.errors import ConfigError
from spectok.training.log import read_log
from spectok_generation import create_prior, load_prior
from spectok_generation.conditions import TextFeatures
from spectok_generation.prior_recipe import PriorRecipe
from spectok_generation.priors.gpt import GPT
from spectok_generation.priors.orders import Annealing, draw_orders
from spectok_generation.records import prior_fingerprint
from spectok_generation.sampling import sample_batch
from spectok_generation.training import train_prior

TINY = {"num_layers": 2, "num_heads": 2, "width": 16}
RANDOM = TINY | {"dropout": 0.0, "order": "random"}
TEXT = {"width": 6}
KINDS = {
    "gpt": ("gpt", {"num_classes": 2}),
    "cat": ("cat", {"text": TEXT}),
    "cat, prefix": ("cat", {"text": TEXT, "text_conditioning": "prefix"}),
    "cat, released block": ("cat", {"text": TEXT, "attention": "multi_query", "block": "released"}),
}
TRAIN = {"steps": 8, "batch_size": 8, "learning_rate": 1e-2, "log_every": 1, "save_every": 1}


def some_sequences(spec, count):
    return torch.stack([torch.randint(0, v, (count,)) for v in spec.vocab_sizes], dim=1)


@pytest.fixture(params=KINDS)
def prior(request, spec, sharp):
    """Return each prior that has orders, on each kind of layout."""
    name, options = KINDS[request.param]
    return sharp(create_prior(name, spec, **RANDOM, **options))


def condition(prior, count):
    if not prior.text_width:
        return torch.arange(count) % 2
    mask = (torch.arange(3) < torch.tensor([[1], [3]])).repeat(count, 1)[:count]
    return TextFeatures(torch.randn(count, 3, prior.text_width), mask)


# -- the orders ------------------------------------------------------------------------------------


def test_every_place_follows_those_that_say_what_it_means(spec, checked_shapes):
    orders = draw_orders(spec, 200, 1.0)
    assert torch.equal(orders.sort(1).values, torch.arange(spec.num_tokens).expand_as(orders))
    levels = torch.tensor(spec.level_of_place)
    assert (levels[orders] == levels).all()  # whole levels in turn, or the levels of each position
    if spec.order == "position":
        cells = torch.tensor(spec.position_of_place)[orders].unflatten(1, (-1, spec.num_levels))
        assert (cells == cells[:, :, :1]).all()
    moved = max(level.num_tokens for level in spec.levels) > 1
    assert (orders != torch.arange(spec.num_tokens)).any() == moved


def test_all_orders_are_as_likely_and_the_share_is_kept():
    spec = TokenSpec((Level((3,), 2),))
    orders = draw_orders(spec, 30_000, 1.0)
    counts = (orders * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == math.factorial(3)
    assert counts.tolist() == pytest.approx([5000] * 6, rel=0.06)  # four standard deviations
    some = draw_orders(TokenSpec((Level((4, 4), 2),)), 10_000, 0.3)
    changed = (some != torch.arange(16)).any(1).double().mean().item()
    assert changed == pytest.approx(0.3, abs=0.02)
    assert torch.equal(draw_orders(spec, 5, 0.0), torch.arange(3).expand(5, 3))


def test_ranks_share_out_the_orders_of_the_whole_batch(spec, monkeypatch):
    with shared_draws(7):
        whole = draw_orders(spec, 6, 0.5)
    with shared_draws(8):
        assert not torch.equal(draw_orders(spec, 60, 0.5)[:6], whole)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: (rank, 2))
        with shared_draws(7):
            assert torch.equal(draw_orders(spec, 3, 0.5), whole[3 * rank : 3 * rank + 3])


def test_the_share_falls_linearly_between_the_fractions():
    paper = Annealing(0.5, 0.75)
    shares = [paper.share(progress) for progress in (0, 0.49, 0.5, 0.625, 0.7, 0.75, 0.99)]
    assert shares == pytest.approx([1, 1, 1, 0.5, 0.2, 0, 0])
    assert [Annealing(0.5, 0.5).share(p) for p in (0.49, 0.5)] == [1, 0]
    assert Annealing(0, 0).share(0) == 0
    assert Annealing(1, 1).share(0.999) == 1


# -- what a place sees -----------------------------------------------------------------------------


def test_a_place_sees_those_before_it_in_the_order_and_no_other(prior, checked_shapes):
    spec, tokens = prior.token_spec, some_sequences(prior.token_spec, 3)
    given, order = prior.check_condition(condition(prior, 3), 3), draw_orders(spec, 3, 1.0)
    ranks = order.argsort(1)
    with torch.no_grad():
        wanted = prior.logits_in_order(tokens, given, order)
        for place, size in enumerate(spec.vocab_sizes):
            changed = tokens.clone()
            changed[:, place] = (tokens[:, place] + 1) % size
            found = prior.logits_in_order(changed, given, order)
            moved = ((found - wanted).nan_to_num() != 0).any(2)
            assert torch.equal(moved, ranks > ranks[:, [place]])


def test_raster_is_one_of_the_orders(prior):
    tokens, length = some_sequences(prior.token_spec, 3), prior.token_spec.num_tokens
    given = prior.check_condition(condition(prior, 3), 3)
    found = prior.logits_in_order(tokens, given, torch.arange(length).expand(3, length))
    torch.testing.assert_close(found, prior.logits(tokens, given), rtol=0, atol=1e-5)


def test_cached_logits_equal_uncached_ones(prior):
    tokens, spec = some_sequences(prior.token_spec, 4), prior.token_spec
    given = prior.check_condition(condition(prior, 4), 4)
    expected = prior.logits(tokens, given)
    for first in (0, spec.num_tokens // 2):
        state = prior.start(given)
        for place in range(first, spec.num_tokens):
            logits = prior.next_logits(state, tokens[:, :place])
            wanted = expected[:, place, : spec.vocab_sizes[place]]
            torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(prior):
    given = condition(prior, 4)
    together = sample_batch(prior, range(4), given, seed=5)
    alone = given[[2]]
    assert torch.equal(sample_batch(prior, [2], alone, seed=5), together[[2]])


def test_an_input_is_told_its_place_and_the_place_to_predict(spec, sharp):
    prior = sharp(create_prior("gpt", spec, **RANDOM))
    tokens, order = some_sequences(spec, 4), draw_orders(spec, 4, 1.0)
    none, read = prior.check_condition(None, 4), []
    prior.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs), with_kwargs=True
    )
    prior.logits_in_order(tokens, none, order)
    assert torch.equal(read[0]["position_ids"], order)
    codes, vectors, rows = spec.code_ids(tokens), prior.backbone.wte.weight, range(4)
    places = list(zip(spec.level_of_place, spec.position_of_place))
    for i in range(spec.num_tokens):
        expected = prior.start_inputs(none)
        if i:
            before = order[:, i - 1]
            expected = vectors[codes[rows, before]] + prior.token_places.weight[before]
        level = spec.level_of_place[i]  # the same in every order
        if spec.levels[level].codebook == "path":
            parents = [places.index((level - 1, spec.position_of_place[p])) for p in order[:, i]]
            expected = expected + vectors[codes[rows, parents]]
        torch.testing.assert_close(read[0]["inputs_embeds"][:, i], expected)


def test_predictions_depend_on_the_place_to_predict(sharp):
    """With one codebook, places 2 and 3 have the same weights and are told apart by that alone."""
    prior = sharp(create_prior("gpt", TokenSpec((Level((2, 2), 3),)), **RANDOM))
    tokens, none = torch.tensor([[1, 2, 0, 0]]), prior.check_condition(None, 1)
    third = prior.logits_in_order(tokens, none, torch.tensor([[0, 1, 2, 3]]))[0, 2]
    fourth = prior.logits_in_order(tokens, none, torch.tensor([[0, 1, 3, 2]]))[0, 3]
    assert (third - fourth).abs().max() > 0.1


# -- training --------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_orders_drawn_and_raster_elsewhere(prior):
    tokens, given = some_sequences(prior.token_spec, 6), condition(prior, 6)
    prior.condition_dropout = 0.0

    def loss(progress):
        prior.begin_step(round(100 * progress), 100)
        with shared_draws(3), torch.no_grad():
            return prior(tokens, given).losses["nll"]

    checked = prior.check_condition(given, 6)
    raster = -prior.log_prob(tokens, given).mean() / prior.token_spec.num_tokens
    torch.testing.assert_close(loss(0.0), raster)  # in eval mode
    prior.train()
    torch.testing.assert_close(loss(0.75), raster)
    torch.testing.assert_close(
        -prior.log_prob(tokens, given).mean() / prior.token_spec.num_tokens, raster
    )
    for progress, share in ((0.2, 1.0), (0.7, 0.2)):
        with shared_draws(3), torch.no_grad():
            order = draw_orders(prior.token_spec, 6, share)
            logits = prior.logits_in_order(tokens, checked, order)
        expected = -logits.log_softmax(-1).gather(2, tokens[:, :, None]).mean()
        torch.testing.assert_close(loss(progress), expected)


def test_random_orders_train_all_weights(spec):
    prior = create_prior("gpt", spec, **RANDOM)
    tokens = some_sequences(spec, 4)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        prior.begin_step(step, 60)
        losses.append(prior(tokens).losses["nll"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in prior.parameters())
    assert losses[-1] < 0.7 * losses[0]


def recipe_for(tokenizer, **train):
    sections = {
        "prior": {"name": "gpt", "condition_dropout": 0.3, **RANDOM},
        "tokenizer": str(tokenizer),
        "data": {"name": "digits", "limit": 50},
        "train": TRAIN | {"sample_every": None} | train,
    }
    return PriorRecipe.model_validate(sections)


def losses_of(output):
    return [record["loss"] for record in read_log(output / "log.jsonl")]


def test_a_run_stopped_while_it_anneals_goes_on_bit_exactly(
    tokenizer_folder, tmp_path, monkeypatch
):
    recipe = recipe_for(tokenizer_folder)
    told = []

    def stop(prior, step, num_steps, begin=GPT.begin_step):
        begin(prior, step, num_steps)
        told.append(prior.annealing.share(prior.progress))
        if step == 5 and len(told) == 6:
            raise RuntimeError("stopped")

    monkeypatch.setattr(GPT, "begin_step", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        train_prior(recipe, tmp_path / "stopped")
    train_prior(recipe, tmp_path / "stopped", resume=True)
    assert told == [1, 1, 1, 1, 1, 0.5, 0.5, 0, 0]  # step 5, in the middle, is begun twice
    train_prior(recipe, tmp_path / "whole")
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    stopped, whole = (load_prior(tmp_path / name).state_dict() for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_other_steps_bring_random_orders_back_only_if_asked_for(tokenizer_folder, tmp_path, capsys):
    train_prior(recipe_for(tokenizer_folder, steps=4), tmp_path / "run")
    with pytest.raises(ConfigError) as refused:
        train_prior(recipe_for(tokenizer_folder, steps=16), tmp_path / "run", resume=True)
    told = "train.steps: with 16 steps instead of 4 the share of images in random orders"
    assert str(refused.value).startswith(f"{told} (prior.order) goes from 0 to 1 at step 5")
    again = recipe_for(tokenizer_folder, steps=16, reschedule=True)
    assert train_prior(again, tmp_path / "run", resume=True).step == 16
    assert "in random orders goes from 0 to 1 at step 5" in capsys.readouterr().err


def test_two_processes_train_what_one_trains(tokenizer_folder, tmp_path, fork_ranks):
    train_prior(recipe_for(tokenizer_folder), tmp_path / "one")
    half = recipe_for(tokenizer_folder, batch_size=4)
    assert fork_ranks(train_prior, half, tmp_path / "two") == [0, 0]
    expected = pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)
    assert losses_of(tmp_path / "two") == expected


# -- what was there before -------------------------------------------------------------------------

LOSSES = {  # after five steps, by layout: gpt, cat; recorded before there were orders
    "grid": (1.04224693775177, 0.8344824314117432),
    "list": (0.8548174500465393, 0.902583122253418),
    "shared runs": (0.884913980960846, 0.8287108540534973),
    "two levels": (0.9686467051506042, 0.9756746888160706),
    "tree": (0.6426318287849426, 0.7076525092124939),
    "tree, place by place": (0.5902143120765686, 0.668803334236145),
}


@pytest.mark.parametrize("number", [0, 1], ids=["gpt", "cat"])
def test_raster_order_trains_to_the_numbers_it_trained_to(spec, number, request):
    expected = LOSSES[request.node.callspec.params["spec"]][number]
    options = {"dropout": 0.1} | TINY
    if number:
        prior = create_prior("cat", spec, text={"width": 5}, **options)
    else:
        prior = create_prior("gpt", spec, num_classes=2, condition_dropout=0.3, **options)
    assert not any("token_places" in name for name in prior.state_dict())
    tokens = some_sequences(spec, 6)
    given = torch.arange(6) % 2
    if number:
        given = TextFeatures(torch.randn(6, 3, 5), torch.ones(6, 3, dtype=torch.bool))
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for step in range(5):
        prior.begin_step(step, 5)
        loss = prior(tokens, given).losses["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_prior_saved_before_there_were_orders_is_the_same_prior(tmp_path):
    prior = create_prior("gpt", TokenSpec((Level((2, 2), 3),)), **TINY)
    prior.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("order", "random_until", "raster_from"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_prior(tmp_path)
    assert loaded.annealing is None
    assert prior_fingerprint(loaded) == prior_fingerprint(prior)
    assert "order" not in prior.first_config()


def test_bad_options(tmp_path):
    grid = TokenSpec((Level((2, 2), 3),))
    for options, expected in (
        ({"random_until": 0.8}, r"random_until 0.8 and prior.raster_from 0.75 are fractions of a"),
        ({"random_until": -0.1}, r"prior.random_until: .*greater than or equal to 0"),
        ({"raster_from": 1.1}, r"prior.raster_from: .*less than or equal to 1"),
        ({"raster_from": math.nan}, r"prior.raster_from: "),
        ({"order": "spiral"}, r"prior.order: .*'raster' or 'random'"),
    ):
        with pytest.raises(ConfigError, match=expected) as error:
            create_prior("gpt", grid, **RANDOM | options)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"random needs prior\.positions=absolute"):
        create_prior("cat", grid, text=TEXT, positions="relative_2d", **RANDOM)
    for name in ("pixelcnn", "maskgit", "ldm"):
        with pytest.raises(ConfigError, match=r"prior.order: unknown key"):
            create_prior(name, grid, order="random")
