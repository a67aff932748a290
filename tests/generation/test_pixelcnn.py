"""The pixelcnn prior on every kind of token layout."""

import itertools
import math

import pytest
import torch

from spectok import Level, TokenSpec
from spectok.errors import ConfigError
from spectok_generation import create_prior, load_prior, sample_tokens
from spectok_generation.priors.gated import GatedStack
from spectok_generation.priors.grids import grid_size, nearest_cells
from spectok_generation.sampling import sample_batch

TINY = {"num_layers": 3, "width": 8, "first_kernel": 3, "head_width": 12}
GRIDS = {
    "grid": TokenSpec((Level((4, 5), 3),)),
    "list": TokenSpec((Level((7,), 3, "position", 7),), prefix="tokens"),
    "two grids": TokenSpec((Level((2, 2), 4), Level((3, 4), 3)), prefix="levels"),
    "tree": TokenSpec((Level((3, 3), 2), Level((3, 3), 2, "path"), Level((3, 3), 3, "path"))),
    "tree, place by place": TokenSpec(
        (Level((3, 3), 2), Level((3, 3), 2, "path"), Level((3, 3), 3, "path")), order="position"
    ),
}


@pytest.fixture(params=GRIDS)
def grids(request) -> TokenSpec:
    """Return layouts large enough for kernels to have something to miss."""
    return GRIDS[request.param]


def all_sequences(spec):
    return torch.tensor(list(itertools.product(*(range(v) for v in spec.vocab_sizes))))


def some_sequences(spec, count):
    return torch.stack([torch.randint(0, v, (count,)) for v in spec.vocab_sizes], dim=1)


def test_probabilities_of_all_sequences_sum_to_one(spec, sharp, checked_shapes):
    prior = sharp(create_prior("pixelcnn", spec, num_classes=2, **TINY))
    sequences = all_sequences(spec)
    for label in (0, 1):
        log_probs = prior.log_prob(sequences, torch.full((len(sequences),), label))
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert log_probs.std() > 0.1


def test_gradient_reaches_every_earlier_place_and_no_later(grids, sharp):
    prior = sharp(create_prior("pixelcnn", grids, num_classes=2, **TINY | {"num_layers": 5}))
    prior.double()
    length, tokens = grids.num_tokens, some_sequences(grids, 1)
    moved = torch.zeros(1, length, TINY["width"], dtype=torch.float64, requires_grad=True)
    prior.code_vectors.register_forward_hook(lambda _, __, out: out + moved)
    classes = prior.class_vectors.weight
    logits = prior.logits(tokens, torch.tensor([1])).double()
    for place, size in enumerate(grids.vocab_sizes):
        chosen = (logits[0, place, :size] * torch.randn(size)).sum()
        by_token, by_class = torch.autograd.grad(chosen, (moved, classes), retain_graph=True)
        assert (by_token[0].norm(dim=1) > 0).tolist() == [j < place for j in range(length)]
        assert (by_class.norm(dim=1) > 0).tolist() == [False, True, False]


def test_the_neighbourhood_has_no_blind_spot():
    """A kernel k sees k//2 rows up and as many columns to either side; layers add up."""
    stack = GatedStack(4, [5, 3], dropout=0.0).double()
    grid = torch.randn(1, 4, 7, 9, dtype=torch.float64, requires_grad=True)
    features = stack(grid, [torch.zeros(1, 4, 1, 1, dtype=torch.float64)])
    (gradient,) = torch.autograd.grad(features[0, :, 4, 4].sum(), grid)
    seen = gradient[0].abs().sum(0) > 0
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[1:4, 1:8] = True  # three rows up, three columns to either side
    expected[4, 1:4] = True  # and three to the left
    assert torch.equal(seen, expected)


def test_rows_far_above_reach_the_last_layer_undiminished():
    """The vertical stack has no residual: its weights start so that what it says does not fade."""
    stack = GatedStack(16, [7, *[3] * 14], dropout=0.0)
    v = h = 0.34 * torch.randn(2, 16, 20, 20)
    spreads = []
    for layer in stack.layers:
        v, h = layer(v, h, [torch.zeros(1, 16, 1, 1)])
        spreads.append(v[:, :, 5:].std().item())
    assert 0.5 < spreads[-1] / spreads[0] < 2


def test_cached_logits_equal_uncached_ones(grids, sharp):
    prior = sharp(create_prior("pixelcnn", grids, num_classes=3, **TINY))
    tokens, labels = some_sequences(grids, 3), torch.tensor([0, 1, 3])
    expected = prior.logits(tokens, labels)
    with torch.no_grad():
        for first in (0, 1, grids.num_tokens // 2, grids.num_tokens - 1):
            state = prior.start(labels)
            for place in range(first, grids.num_tokens):
                logits = prior.next_logits(state, tokens[:, :place])
                size = grids.vocab_sizes[place]
                torch.testing.assert_close(logits, expected[:, place, :size], rtol=0, atol=1e-5)


def test_it_learns_below_the_entropy_of_uniform_tokens(spec):
    tokens = some_sequences(spec, 4)
    prior = create_prior("pixelcnn", spec, **TINY)
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


def test_samples_follow_the_distribution_of_the_prior(spec, sharp):
    prior = sharp(create_prior("pixelcnn", spec, **TINY))
    tokens = sample_tokens(prior, 1000, batch_size=1000)
    found, counts = tokens.unique(dim=0, return_counts=True)
    expected = prior.log_prob(found).exp()
    assert (counts / counts.sum() - expected).abs().max() < 0.06
    assert expected.sum() > 0.9


def test_an_image_does_not_depend_on_its_batch(grids, sharp):
    prior = sharp(create_prior("pixelcnn", grids, num_classes=3, condition_dropout=0.1, **TINY))
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sample_tokens(prior, 5, labels, seed=5)
    assert torch.equal(sample_tokens(prior, 5, labels, seed=5, batch_size=2), together)
    alone = sample_batch(prior, [4], labels[4:5], seed=5)
    assert torch.equal(alone[0], together[4])


def test_saved_prior_gives_the_same_logits_and_samples(grids, sharp, tmp_path):
    prior = sharp(create_prior("pixelcnn", grids, num_classes=2, **TINY))
    prior.save_pretrained(tmp_path)
    loaded = load_prior(tmp_path)
    tokens, labels = some_sequences(grids, 3), torch.tensor([0, 1, 1])
    expected = prior.logits(tokens, labels)
    torch.testing.assert_close(loaded.logits(tokens, labels), expected, rtol=0, atol=1e-6)
    assert torch.equal(sample_tokens(loaded, 3, labels), sample_tokens(prior, 3, labels))


def test_classes_are_hidden_in_training_only():
    prior = create_prior("pixelcnn", GRIDS["grid"], num_classes=2, condition_dropout=0.5, **TINY)
    tokens, labels = some_sequences(prior.token_spec, 64), torch.ones(64, dtype=torch.int64)
    for used in ([False, True, True], [False, True, False]):
        prior.zero_grad()
        prior(tokens, labels).losses["nll"].backward()
        assert (prior.class_vectors.weight.grad.norm(dim=1) > 0).tolist() == used
        prior.eval()


def test_lists_are_folded_and_cells_matched():
    assert [grid_size(Level((n,), 2)) for n in (1, 2, 3, 4, 7, 64)] == [
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 2),
        (3, 3),
        (8, 8),
    ]
    assert nearest_cells(Level((2, 2), 2), Level((2, 4), 2)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert nearest_cells(Level((2,), 2), Level((7,), 2)) == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_bad_input():
    with pytest.raises(ConfigError, match=r"prior\.kernel 4 is even and has no middle; use 5"):
        create_prior("pixelcnn", GRIDS["grid"], **TINY | {"kernel": 4})
    with pytest.raises(ConfigError, match=r"prior\.first_kernel"):
        create_prior("pixelcnn", GRIDS["grid"], **TINY | {"first_kernel": 1})
