"""The gpt prior on every kind of token layout."""

import itertools
import math

import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import CheckpointError, ConfigError, InputError, TokenError
from spectok_generation import create_prior, load_prior, sample_tokens

TINY = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0}


def all_sequences(spec):
    return torch.tensor(list(itertools.product(*(range(v) for v in spec.vocab_sizes))))


def some_sequences(spec, count):
    return torch.stack([torch.randint(0, v, (count,)) for v in spec.vocab_sizes], dim=1)


def test_probabilities_of_all_sequences_sum_to_one(spec, sharp, checked_shapes):
    prior = sharp(create_prior("gpt", spec, num_classes=2, **TINY))
    sequences = all_sequences(spec)
    for label in (0, 1):
        log_probs = prior.log_prob(sequences, torch.full((len(sequences),), label))
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert log_probs.std() > 0.1


def test_gradient_reaches_every_earlier_place_and_no_later(spec, sharp):
    prior = sharp(create_prior("gpt", spec, num_classes=2, **TINY))
    length, tokens = spec.num_tokens, some_sequences(spec, 1)
    moved = torch.zeros(1, length + 1, TINY["width"], requires_grad=True)  # the last: no token
    numbers = {place: i for i, place in enumerate(zip(spec.level_of_place, spec.position_of_place))}
    parents = [
        numbers.get((level - 1, position), length)
        for level, position in zip(spec.level_of_place, spec.position_of_place)
    ]
    reads = iter([list(range(length - 1)), parents])  # the previous token, then the one above
    prior.backbone.wte.register_forward_hook(lambda _, __, out: out + moved[:, next(reads)])
    start = prior.start_vectors.weight
    logits = prior.logits(tokens, torch.tensor([1]))
    for place, size in enumerate(spec.vocab_sizes):
        chosen = (logits[0, place, :size] * torch.randn(size)).sum()
        by_token, by_class = torch.autograd.grad(chosen, (moved, start), retain_graph=True)
        reached = by_token[0, :length].norm(dim=1) > 1e-7
        assert reached.tolist() == [j < place for j in range(length)]
        assert (by_class.norm(dim=1) > 1e-7).tolist() == [False, True, False]


def parents_of(spec):
    """Return, for each place, which one holds the code of the level above; None without one."""
    places = list(zip(spec.level_of_place, spec.position_of_place))
    hangs = [spec.levels[level].codebook == "path" for level, _ in places]
    return [places.index((k - 1, n)) if on else None for on, (k, n) in zip(hangs, places)]


@pytest.mark.parametrize("spec", ["tree", "tree, place by place"], indirect=True)
def test_a_place_reads_the_code_that_its_own_parent_chose(spec, sharp):
    prior, tokens = sharp(create_prior("gpt", spec, **TINY)), some_sequences(spec, 4)
    condition, parents = prior.check_condition(None, 4), parents_of(spec)
    codes, vectors, given = spec.code_ids(tokens), prior.backbone.wte.weight, []
    prior.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    prior.logits(tokens, condition)
    for place, parent in enumerate(parents):
        expected = vectors[codes[:, place - 1]] if place else prior.start_inputs(condition)
        if parent is not None:
            expected = expected + vectors[codes[:, parent]]
        torch.testing.assert_close(given[0][:, place], expected)


@pytest.mark.parametrize("spec", ["tree", "tree, place by place"], indirect=True)
def test_sampling_looks_up_the_code_of_its_own_parent_and_no_other(spec, sharp):
    prior, tokens = sharp(create_prior("gpt", spec, **TINY)), some_sequences(spec, 4)
    codes, looked_up = spec.code_ids(tokens), []
    prior.backbone.wte.register_forward_hook(lambda _, ids, __: looked_up.append(ids[0]))
    state = prior.start(prior.check_condition(None, 4))
    for place, parent in enumerate(parents_of(spec)):
        looked_up.clear()
        prior.next_logits(state, tokens[:, :place])
        assert torch.equal(looked_up[0], codes[:, max(place - 1, 0) : place])
        if parent is not None:
            assert torch.equal(looked_up[1], codes[:, [parent]])


def test_cached_logits_equal_uncached_ones(spec, sharp):
    prior = sharp(create_prior("gpt", spec, num_classes=3, **TINY))
    tokens, labels = some_sequences(spec, 4), torch.tensor([0, 1, 2, 3])
    expected = prior.logits(tokens, labels)
    for first in range(spec.num_tokens):  # the first call takes in a prefix at once
        state = prior.start(labels)
        for place in range(first, spec.num_tokens):
            logits = prior.next_logits(state, tokens[:, :place])
            size = spec.vocab_sizes[place]
            torch.testing.assert_close(logits, expected[:, place, :size], rtol=0, atol=1e-5)


def test_logits_are_as_wide_as_the_largest_vocabulary(spec):
    prior = create_prior("gpt", spec, **TINY)
    logits = prior.logits(some_sequences(spec, 2), prior.check_condition(None, 2))
    assert logits.shape == (2, spec.num_tokens, spec.max_vocab_size)
    for place, size in enumerate(spec.vocab_sizes):
        assert torch.isfinite(logits[:, place, :size]).all()
        assert (logits[:, place, size:] == -torch.inf).all()


def test_it_learns_below_the_entropy_of_uniform_tokens(spec):
    tokens = some_sequences(spec, 4)
    prior = create_prior("gpt", spec, **TINY)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=2e-2)
    for _ in range(30):
        loss = prior(tokens).losses["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    uniform = sum(math.log(v) for v in spec.vocab_sizes) / spec.num_tokens
    distinct = math.log(len(tokens.unique(dim=0))) / spec.num_tokens
    assert loss.item() < (uniform + distinct) / 2
    assert all(parameter.grad is not None for parameter in prior.parameters())


def test_saved_prior_gives_the_same_logits_and_samples(spec, sharp, tmp_path):
    prior = sharp(create_prior("gpt", spec, num_classes=2, **TINY))
    prior.save_pretrained(tmp_path / "run" / "model")
    loaded = load_prior(tmp_path / "run")
    assert loaded.token_spec == spec
    assert not loaded.training
    tokens, labels = some_sequences(spec, 3), torch.tensor([0, 1, 1])
    assert torch.equal(loaded.logits(tokens, labels), prior.logits(tokens, labels))
    assert torch.equal(sample_tokens(loaded, 3, labels), sample_tokens(prior, 3, labels))


def test_bits(spec):
    record = {"fingerprint": "x", "image_shape": [3, 4, 5]}
    prior = create_prior("gpt", spec, tokenizer=record, **TINY).eval()
    tokens = some_sequences(spec, 5)
    output = prior(tokens)
    nats = -prior.log_prob(tokens).mean().item()
    bits = nats / math.log(2)
    assert output.losses["nll"].item() == pytest.approx(nats / spec.num_tokens, rel=1e-5)
    assert output.metrics["bits_per_token"].item() == pytest.approx(bits / spec.num_tokens)
    assert output.metrics["bits_per_dim"].item() == pytest.approx(bits / 60)


def test_condition_dropout_hides_classes_in_training_only(spec):
    prior = create_prior("gpt", spec, num_classes=2, condition_dropout=0.5, **TINY)
    tokens, labels = some_sequences(spec, 64), torch.ones(64, dtype=torch.int64)
    prior(tokens, labels).losses["nll"].backward()
    used = prior.start_vectors.weight.grad.norm(dim=1) > 0
    assert used.tolist() == [False, True, True]
    prior.eval()
    prior.zero_grad()
    prior(tokens, labels).losses["nll"].backward()
    used = prior.start_vectors.weight.grad.norm(dim=1) > 0
    assert used.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("size", "shape"),
    [("gpt-nano", (3, 3, 48)), ("gpt-mini", (6, 6, 192)), ("gpt2", (12, 12, 768))],
)
def test_sizes_are_those_of_mingpt(size, shape):
    with torch.device("meta"):
        config = create_prior("gpt", TokenSpec((Level((4,), 8),)), size=size).backbone.config
    assert (config.n_layer, config.n_head, config.n_embd) == shape


def test_bad_input(spec, tmp_path):
    with pytest.raises(ConfigError, match=r"width 16 is not divisible by prior.num_heads 3"):
        create_prior("gpt", spec, **TINY | {"num_heads": 3})
    with pytest.raises(ConfigError, match=r"prior.dropuot: unknown key \(did you mean 'dropout'"):
        create_prior("gpt", spec, dropuot=0.1)
    with pytest.raises(CheckpointError, match="give a trained prior"):
        load_prior(tmp_path / "nothing")
    plain, conditional = (create_prior("gpt", spec, num_classes=n, **TINY) for n in (0, 2))
    tokens = some_sequences(spec, 2)
    with pytest.raises(InputError, match="without classes"):
        plain(tokens, torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"class 2 is outside 0\.\.1"):
        conditional(tokens, torch.tensor([0, 2]))
    with pytest.raises(InputError, match="trained with the class always given"):
        conditional.log_prob(tokens)
    with pytest.raises(TokenError, match="place 1"):
        plain.log_prob(tokens.index_fill(1, torch.tensor([1]), 9))
