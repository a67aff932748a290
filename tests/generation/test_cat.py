"""The cat prior: what every place and every text token reaches, and texts that are left out."""

import pytest
import torch

from spectok.errors import ConfigError, InputError
from spectok_generation import SamplingOptions, create_prior, load_prior, sample_tokens
from spectok_generation.conditions import TextFeatures, hide
from spectok_generation.sampling import sample_batch

WIDTH = 6
TEXT = {"fingerprint": "x", "path": "a test", "width": WIDTH}
TINY = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.0, "text": TEXT}


@pytest.fixture
def prior(spec, sharp):
    return sharp(create_prior("cat", spec, **TINY))


def some_sequences(spec, count):
    return torch.stack([torch.randint(0, v, (count,)) for v in spec.vocab_sizes], dim=1)


def some_texts(lengths, places=5):
    mask = torch.arange(places) < torch.tensor(lengths)[:, None]
    return TextFeatures(torch.randn(len(lengths), places, WIDTH), mask)


def test_each_place_depends_on_all_before_it_and_none_after(prior, spec, checked_shapes):
    length, tokens = spec.num_tokens, some_sequences(spec, 1)
    moved = torch.zeros(1, length + 1, TINY["width"], requires_grad=True)  # the last: no token
    numbers = {place: i for i, place in enumerate(zip(spec.level_of_place, spec.position_of_place))}
    parents = [
        numbers.get((level - 1, position), length)
        for level, position in zip(spec.level_of_place, spec.position_of_place)
    ]
    reads = iter([list(range(length - 1)), parents])  # the previous token, then the one above
    prior.backbone.wte.register_forward_hook(lambda _, __, out: out + moved[:, next(reads)])
    logits = prior.logits(tokens, some_texts([3]))
    for place, size in enumerate(spec.vocab_sizes):
        chosen = (logits[0, place, :size] * torch.randn(size)).sum()
        (found,) = torch.autograd.grad(chosen, moved, retain_graph=True)
        reached = found[0, :length].norm(dim=1) > 1e-7
        assert reached.tolist() == [j < place for j in range(length)]


def test_every_block_looks_at_every_text_token_and_no_padding(prior, spec):
    tokens, text = some_sequences(spec, 2), some_texts([2, 4])
    text.features.requires_grad_(True)
    blocks = [torch.zeros((), requires_grad=True) for _ in prior.backbone.h]
    for block, scale in zip(prior.backbone.h, blocks):
        block.crossattention.register_forward_hook(
            lambda _, __, out, scale=scale: (out[0] * (1 + scale), *out[1:])
        )
    prior.logits(tokens, text)[..., 0].sum().backward()
    reached = text.features.grad.norm(dim=2) > 1e-7
    assert torch.equal(reached, text.mask)
    assert all(scale.grad.abs() > 1e-7 for scale in blocks)


def test_cached_logits_equal_uncached_ones(prior, spec):
    tokens, text = some_sequences(spec, 4), some_texts([1, 5, 0, 3])
    expected = prior.logits(tokens, text)
    for first in range(spec.num_tokens):  # the first call takes in a prefix at once
        state = prior.start(text)
        for place in range(first, spec.num_tokens):
            logits = prior.next_logits(state, tokens[:, :place])
            size = spec.vocab_sizes[place]
            torch.testing.assert_close(logits, expected[:, place, :size], rtol=0, atol=1e-5)


def test_a_text_that_is_all_masked_is_no_text(prior, spec):
    tokens, text = some_sequences(spec, 3), some_texts([2, 5, 3])
    nothing = prior.check_condition(None, 3)
    masked = hide(text, torch.ones(3, dtype=torch.bool), 0)
    without = prior.logits(tokens, nothing)
    torch.testing.assert_close(prior.logits(tokens, masked), without, rtol=0, atol=1e-5)
    assert (prior.logits(tokens, text) - without)[without.isfinite()].abs().max() > 1e-2


def test_padding_does_not_matter(prior, spec):
    tokens, text = some_sequences(spec, 2), some_texts([2, 3])
    longer = TextFeatures(
        torch.cat([text.features, 100 * torch.randn(2, 4, WIDTH)], dim=1),
        torch.cat([text.mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1),
    )
    expected = prior.logits(tokens, text.trim())
    torch.testing.assert_close(prior.logits(tokens, longer), expected, rtol=0, atol=1e-5)


def test_guidance(prior):
    text = some_texts([2, 5, 3, 1])
    plain = sample_batch(prior, range(4), text)
    nearly_one = SamplingOptions(guidance=1 + 1e-9)
    assert torch.equal(sample_batch(prior, range(4), text, options=nearly_one), plain)
    zero = SamplingOptions(guidance=0.0)
    without = sample_batch(prior, range(4), None)
    assert torch.equal(sample_batch(prior, range(4), text, options=zero), without)


def test_an_image_does_not_depend_on_its_batch(prior):
    text, options = some_texts([2, 5, 3, 1, 4]), SamplingOptions(guidance=2.0)
    together = sample_tokens(prior, 5, text, seed=5, options=options)
    for size in (1, 3):
        again = sample_tokens(prior, 5, text, seed=5, options=options, batch_size=size)
        assert torch.equal(again, together)


def test_texts_are_hidden_in_training_only(spec):
    prior = create_prior("cat", spec, **TINY, condition_dropout=0.5)
    tokens, text = some_sequences(spec, 64), some_texts([4] * 64)
    text.features.requires_grad_(True)
    prior(tokens, text).losses["nll"].backward()
    used = (text.features.grad.norm(dim=(1, 2)) > 0).float().mean().item()
    assert 0.25 < used < 0.75
    text.features.grad = None
    prior.eval()(tokens, text).losses["nll"].backward()
    assert (text.features.grad.norm(dim=(1, 2)) > 0).all()
    assert all(parameter.grad is not None for parameter in prior.parameters())


def test_it_learns_which_tokens_belong_to_which_text(spec):
    tokens, text = some_sequences(spec, 2), some_texts([3, 2])
    prior = create_prior("cat", spec, **TINY, condition_dropout=0.0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=2e-2)
    for _ in range(40):
        loss = prior(tokens, text).losses["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior.eval()
    right = prior.log_prob(tokens, text)
    if not torch.equal(tokens[0], tokens[1]):
        assert (right > prior.log_prob(tokens, text[[1, 0]]) + 1).all()
    assert right.exp().min() > 0.5


def test_saved_prior_gives_the_same_logits(prior, spec, tmp_path):
    prior.save_pretrained(tmp_path)
    loaded = load_prior(tmp_path)
    tokens, text = some_sequences(spec, 2), some_texts([2, 4])
    assert torch.equal(loaded.logits(tokens, text), prior.logits(tokens, text))
    assert (loaded.condition_name, loaded.config["text"]) == ("text", TEXT)


def test_sizes():
    from spectok import Level, TokenSpec

    with torch.device("meta"):
        for size, shape in [("cat-micro", (4, 6, 192)), ("cat-large", (24, 24, 1536))]:
            spec = TokenSpec((Level((16, 16), 1024),))
            prior = create_prior("cat", spec, size=size, text=TEXT)
            config = prior.backbone.config
            assert (config.n_layer, config.n_head, config.n_embd) == shape


def test_bad_input(prior, spec):
    options = {key: value for key, value in TINY.items() if key != "text"}
    with pytest.raises(ConfigError, match="cat reads texts; give a text encoder"):
        create_prior("cat", spec, **options)
    with pytest.raises(ConfigError, match="gpt reads no text; these do: cat, ldm"):
        create_prior("gpt", spec, text=TEXT)
    tokens = some_sequences(spec, 2)
    with pytest.raises(InputError, match="without classes"):
        prior(tokens, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="2 texts are not 3"):
        sample_tokens(prior, 3, some_texts([1, 2]))
    with pytest.raises(InputError, match="needs a text to guide towards"):
        sample_tokens(prior, 2, options=SamplingOptions(guidance=3.0))
    always = create_prior("cat", spec, **TINY, condition_dropout=0.0)
    with pytest.raises(InputError, match=r"condition_dropout=0\): give a text"):
        sample_tokens(always, 2)
    other = TextFeatures(torch.zeros(2, 3, WIDTH + 1), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="of length 7 are not the 6 that this prior reads"):
        prior(tokens, other)
