"""What is particular to HR-VQVAE: a tree of codebooks, searched greedily, kept alive by parents."""

import itertools
import math

import pytest
import torch

import spectok
from spectok.errors import ConfigError, InputError
from spectok.quantizers import DISTANCE_BYTES
from spectok.testing import QuantizerConformance
from spectok_generation import create_prior, sample_tokens
from spectok_hrvqvae.pictures import level_pictures, level_use
from spectok_hrvqvae.revival import split_pairs, with_fair_share
from spectok_hrvqvae.search import nearest_children, search_all, search_blocks
from spectok_hrvqvae.start import hierarchical_kmeans
from spectok_hrvqvae.tree import descend, members, nodes_of, partial_sums, path_of

BRANCHING = [4, 3, 2]


def tree(**options):
    base = {"dim": 4, "num_tokens": 6, "codebook_size": 24, "branching": BRANCHING}
    return spectok.create_quantizer("tree", **(base | options)).train()


def tiny(**options):
    base = {
        "image_size": 16,
        "in_channels": 1,
        "downsample_factor": 4,
        "codebook_size": 24,
        "codebook_dim": 4,
        "channels": 8,
        "num_blocks": 1,
        "residual_channels": 4,
        "quantizer": {"name": "tree", "branching": BRANCHING},
    }
    return spectok.load_tokenizer("hrvqvae", **(base | options))


def step(quantizer, z, optimizer):
    loss = sum(quantizer(z.requires_grad_()).losses.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    quantizer.after_step([optimizer])


def sgd(quantizer, lr=0.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)), *quantizer.parameters()], lr=lr)


# -- the shape of the tree -------------------------------------------------------------------------


def test_branching_is_as_equal_as_whole_numbers_allow():
    figure_4 = [(64,), (8, 8), (4, 4, 4), (4, 4, 2, 2), (4, 2, 2, 2, 2), (2,) * 6]
    for n, branching in enumerate(figure_4, start=1):
        assert tree(codebook_size=64, branching=None, num_levels=n).branching == branching
    assert tree(codebook_size=512, branching=None).branching == (8, 8, 8)
    assert tree(codebook_size=125, branching=5).branching == (5, 5, 5)
    assert tree(codebook_size=32, branching=[16, 2]).branching == (16, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_size": 509, "branching": None}, "509 is not a product of 3 .* e.g. 512"),
        ({"codebook_size": 500, "branching": 8}, r"\[8, 8, 8\] makes 512 leaves, .* is 500"),
        ({"branching": [24, 1]}, "numbers above 1"),
        ({"num_levels": 2}, "num_levels 2 is not the length"),
    ],
)
def test_branching_that_does_not_multiply_to_the_leaves_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        tree(**options)
    with pytest.raises(ConfigError, match="num_levels"):
        tree(num_levels=0)


def test_leaf_numbers_and_paths_are_a_bijection():
    leaves = torch.arange(24)
    paths = path_of(leaves, BRANCHING)
    assert len(paths.unique(dim=0)) == 24
    assert (paths < torch.tensor(BRANCHING)).all()
    assert torch.equal(nodes_of(paths, BRANCHING)[-1], leaves)


def test_declares_one_level_per_level_or_one_of_all_leaves():
    spec = tiny().token_spec
    assert [(level.vocab_size, level.codebook) for level in spec.levels] == [
        (4, "shared"),
        (3, "path"),
        (2, "path"),
    ]
    assert spec.num_codes == 4 + 12 + 24
    assert spec.decodable_prefixes == (16, 32, 48)
    leaf = tiny(quantizer={"name": "tree", "branching": BRANCHING, "tokens": "leaf"}).token_spec
    assert [(level.vocab_size, level.codebook) for level in leaf.levels] == [(24, "shared")]
    for one in (spec, leaf):
        assert one.bits_per_image == pytest.approx(16 * math.log2(24))
    paper = spectok.load_tokenizer("hrvqvae").token_spec
    assert paper.bits_per_image == 16 * 16 * 9


# -- the search ------------------------------------------------------------------------------------


def plain_descend(z, codebooks, branching):
    """Equation 3 with a copy of the parent's codes for every vector."""
    node, path = torch.zeros(len(z), dtype=torch.int64), []
    for codes, m in zip(codebooks, branching):
        children = codes.view(-1, m, codes.shape[1])[node]
        path.append((z.unsqueeze(1) - children).square().sum(-1).argmin(-1))
        node = node * m + path[-1]
        z = z - codes[node]
    return torch.stack(path, dim=1), node


def test_greedy_choice_equals_brute_force_within_the_chosen_path(checked_shapes):
    quantizer, z = tree().eval(), torch.randn(50, 6, 4)
    codebooks = quantizer.codebooks
    path, leaf = plain_descend(z.flatten(0, 1), codebooks, BRANCHING)
    output = quantizer(z)
    assert torch.equal(output.indices.flatten(0, 1), path)
    nodes = nodes_of(path, BRANCHING)
    for upper, lower, m in zip(nodes, nodes[1:], BRANCHING[1:]):
        assert torch.equal(lower // m, upper)  # the chosen child is under the chosen parent
    expected = sum(codes[node] for codes, node in zip(codebooks, nodes))
    assert torch.equal(output.z_q.flatten(0, 1), expected)
    assert len(leaf.unique()) > 12


@pytest.mark.parametrize("num_vectors", [0, 1, 40, 3000])
@pytest.mark.parametrize("budget", [1, 10_000, 1 << 20])
def test_blocks_find_the_nearest_children(num_vectors, budget, monkeypatch):
    monkeypatch.setitem(DISTANCE_BYTES, "cpu", budget)
    codebooks, origins = torch.randn(70, 5, 8), torch.randn(70, 8)
    z, parents = torch.randn(num_vectors, 8), torch.randint(70, (num_vectors,)) ** 2 % 70
    away = (z - origins[parents]).unsqueeze(1) - codebooks[parents]
    expected = away.square().sum(-1).argmin(-1)
    for exact_count in (True, False):
        found = search_blocks(z, parents, codebooks, origins, exact_count=exact_count)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("num_vectors", [0, 1, 3000])
def test_few_codes_are_searched_all_at_once_with_the_same_result(num_vectors):
    codebooks, origins = torch.randn(12, 5, 8), torch.randn(12, 8)
    z, parents = torch.randn(num_vectors, 8), torch.randint(12, (num_vectors,))
    away = (z - origins[parents]).unsqueeze(1) - codebooks[parents]
    expected = away.square().sum(-1).argmin(-1)
    assert torch.equal(search_all(z, parents, codebooks, origins), expected)
    assert torch.equal(nearest_children(z, parents, codebooks, origins), expected)


def test_a_flat_tree_is_plain_vector_quantisation():
    quantizer, z = tree(branching=[24]).eval(), torch.randn(8, 6, 4)
    nearest = torch.cdist(z.flatten(0, 1), quantizer.codebooks[0]).argmin(-1)
    assert torch.equal(quantizer(z).indices.flatten(), nearest)


def test_a_greedy_path_is_not_always_the_nearest_leaf():
    quantizer, z = tree().eval(), torch.randn(50, 6, 4)
    with torch.no_grad():
        leaves = quantizer.tables()[-1]
        nearest = torch.cdist(z.flatten(0, 1), leaves).argmin(-1)
    share = (descend(z.flatten(0, 1), quantizer.codebooks, BRANCHING)[1] == nearest).float().mean()
    assert 0.2 < share < 1


# -- lookup ----------------------------------------------------------------------------------------


def test_the_leaf_table_is_the_sum_of_level_codes_for_every_prefix():
    quantizer = tree().eval()
    indices = path_of(torch.randint(24, (3, 6)), BRANCHING)
    for levels in (1, 2, 3):
        slow = quantizer.lookup(indices[..., :levels])
        assert slow.requires_grad
        with torch.no_grad():
            fast = quantizer.lookup(indices[..., :levels])
        assert torch.equal(fast, slow)
        assert torch.equal(fast, sum(quantizer.level_codes(indices)[:levels]))


def test_the_leaf_table_is_kept_until_a_code_changes():
    quantizer = tree().eval()
    indices = path_of(torch.randint(24, (3, 6)), BRANCHING)
    with torch.no_grad():
        before, table = quantizer.lookup(indices), quantizer.tables()[-1]
        assert quantizer.tables()[-1] is table
        quantizer.codes_1 += 1
        assert torch.allclose(quantizer.lookup(indices), before + 1)
        quantizer.load_state_dict(tree().state_dict())
        assert torch.equal(quantizer.lookup(indices), sum(quantizer.level_codes(indices)))
    with torch.inference_mode():
        frozen = tree().eval()
        frozen.codes_0.zero_()
        assert torch.equal(frozen.lookup(indices), sum(frozen.level_codes(indices)))


def test_leaf_tokens_say_the_same_as_paths():
    paths, leaves = tree().eval(), tree(tokens="leaf").eval()
    leaves.load_state_dict(paths.state_dict())
    z = torch.randn(3, 6, 4)
    one, other = paths(z), leaves(z)
    assert torch.equal(path_of(other.indices.squeeze(-1), BRANCHING), one.indices)
    assert torch.equal(leaves.lookup(other.indices), paths.lookup(one.indices))


# -- losses ----------------------------------------------------------------------------------------


def test_losses_are_those_of_equations_5_and_6():
    quantizer, z = tree(codebook_weight=0.7, commitment_weight=0.3), torch.randn(2, 6, 4)
    output = quantizer(z)
    residual, level_terms = z, 0.0
    for code in quantizer.level_codes(output.indices):
        level_terms += (residual - code).square().mean()
        residual = residual - code
    combined = residual.square().mean()  # z - e_C: as large as the last level's term
    for name, weight in [("codebook", 0.7), ("commitment", 0.3)]:
        expected = weight * (level_terms + combined)
        assert output.losses[name].item() == pytest.approx(expected.item(), rel=1e-5)


def test_commitment_of_every_level_reaches_the_encoder():
    quantizer, z = tree(), torch.randn(2, 6, 4, requires_grad=True)
    output = quantizer(z)
    (gradient,) = torch.autograd.grad(output.losses["commitment"], z)
    with torch.no_grad():
        residual, by_level = z.detach(), []
        for code in quantizer.level_codes(output.indices):
            residual = residual - code
            by_level.append(2 * 0.25 * residual / z.numel())
    assert all(part.abs().sum() > 0 for part in by_level)
    torch.testing.assert_close(gradient, sum(by_level) + by_level[-1])  # e_C's equals the last's


def test_codes_are_moved_by_their_own_term_and_the_combined_one():
    quantizer, z = tree(), torch.randn(1, 6, 4)
    output = quantizer(z)
    codes = quantizer.codebooks
    gradients = torch.autograd.grad(output.losses["codebook"], codes)
    nodes = nodes_of(output.indices[0], BRANCHING)
    left, total = z[0], sum(code[0] for code in quantizer.level_codes(output.indices))
    for gradient, code, node in zip(gradients, codes, nodes):
        left = left - code[node]
        away = -2 * (left + z[0] - total) / z.numel()
        torch.testing.assert_close(gradient, torch.zeros_like(code).index_add(0, node, away))


# -- the start -------------------------------------------------------------------------------------


def clustered(count, dim=4):
    centres = 3 * torch.randn(5, dim)
    return centres[torch.randint(5, (count,))] + 0.5 * torch.randn(count, dim)


def test_residuals_shrink_level_by_level_after_hierarchical_kmeans(checked_shapes):
    z = clustered(400)
    codebooks = hierarchical_kmeans(z, BRANCHING)
    _, leaf = descend(z, codebooks, BRANCHING)
    energy = [z.square().mean()]
    for sums, width in zip(partial_sums(torch.zeros(1, 4), codebooks, BRANCHING)[1:], (6, 2, 1)):
        energy.append((z - sums[leaf // width]).square().mean())
    assert all(later < 0.9 * earlier for earlier, later in itertools.pairwise(energy))
    centre = torch.zeros(24, 4).index_add(0, leaf, z) / torch.bincount(leaf, minlength=24)[:, None]
    sums = partial_sums(torch.zeros(1, 4), codebooks, BRANCHING)[-1]
    used = leaf.unique()
    assert (sums - centre)[used].norm() < 0.2 * z.std()  # nearly converged: codes are means


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_first_step_starts_the_tree_and_no_later_one(update):
    quantizer, z = tree(update=update, revive_below=0.0), clustered(300).view(50, 6, 4)
    before = quantizer.eval()(z).metrics["residual_level2"]
    optimizer = sgd(quantizer.train())
    step(quantizer, z, optimizer)
    metrics = quantizer.eval()(z).metrics
    levels = [metrics[f"residual_level{i}"] for i in range(3)]
    assert z.square().mean() > levels[0] > levels[1] > levels[2]
    assert levels[2] < 0.3 * before
    assert metrics["codebook_usage"] > 0.8
    resumed = tree(update=update, revive_below=0.0)
    resumed.load_state_dict(quantizer.state_dict())
    started = resumed.codes_0.clone()
    step(resumed.train(), 100 + z, sgd(resumed))
    assert (resumed.codes_0 - started).norm(dim=1).min() < 1  # k-means would move all to the data


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_without_a_start_codes_stay_where_they_were_drawn(update):
    z = clustered(300).view(50, 6, 4)
    quantizer = tree(update=update, revive_below=0.0, start="random").train()
    drawn = torch.cat([codes.detach().clone() for codes in quantizer.codebooks])
    step(quantizer, z, sgd(quantizer))
    kept = torch.cat(list(quantizer.codebooks))
    assert (kept == drawn).all(1).any()  # nothing chose them
    started = tree(update=update, revive_below=0.0).train()
    step(started, z, sgd(started))
    assert not (torch.cat(list(started.codebooks)) == drawn).all(1).any()
    assert quantizer.step_counter.steps == 1


# -- staying alive ---------------------------------------------------------------------------------


def test_a_sibling_is_copied_once_and_only_if_half_of_it_stays_alive():
    shares = torch.tensor([[0, 0.5, 0, 0.5], [0.01, 0.29, 0.3, 0.4], [0, 0, 0, 0], [0, 0, 0, 1]])
    moved, onto = split_pairs(shares, below=0.1)
    assert list(zip(moved.tolist(), onto.tolist())) == [(0, 1), (2, 3), (4, 7), (12, 15)]
    moved, onto = split_pairs(shares, below=0.7)
    assert list(zip(moved.tolist(), onto.tolist())) == [(0, 1), (2, 3), (4, 7), (12, 15)]
    moved, onto = split_pairs(torch.tensor([[0.1, 0.3, 0.3, 0.3]]), below=0.7)
    assert not len(moved)  # half of 0.3 would be below 0.7 of the fair share


def test_the_parents_share_stays_when_its_children_are_revived():
    shares = torch.rand(5, 4)
    given = with_fair_share(shares, torch.rand(5, 4) < 0.4)
    assert torch.allclose(given.sum(1), shares.sum(1))


def test_members_repeat_where_a_parent_has_too_few():
    rows, held = members(torch.tensor([2, 0, 2, 2, 0]), 3, 4)
    assert held.tolist() == [2, 0, 3]
    assert rows[0].tolist() == [1, 4, 1, 4]
    assert rows[2].tolist() == [0, 2, 3, 0]


def dying(update, leaves):
    """Return a started quantizer in which some leaves get nothing, its data, and its optimizer."""
    torch.manual_seed(0)
    quantizer = tree(update=update, revive_every=1000)
    z = clustered(600).view(100, 6, 4)
    optimizer = torch.optim.Adam(sgd(quantizer).param_groups[0]["params"], lr=0.0)
    step(quantizer, z, optimizer)
    step(quantizer, z, optimizer)
    for values in quantizer._running():
        values[leaves] = 0
    for state in optimizer.state.values():
        if state["exp_avg"].ndim == 2:
            state["exp_avg"].fill_(1.0)
    quantizer._vectors = [z.detach().flatten(0, 1)]
    return quantizer, z.detach().flatten(0, 1), optimizer


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_dead_leaf_becomes_a_residual_of_its_parent(update):
    quantizer, z, optimizer = dying(update, leaves=[7])
    before = [codes.detach().clone() for codes in quantizer.codebooks]
    mass = quantizer.frequency.view(-1, 2).sum(1)
    parent = descend(z, quantizer.codebooks, BRANCHING)[1] // 2
    quantizer.revive([optimizer])
    codes = quantizer.codebooks[2].detach()
    assert torch.equal(quantizer.codebooks[0], before[0])
    assert torch.equal(quantizer.codebooks[1], before[1])
    assert (codes != before[2]).any(1).nonzero().tolist() == [[7]]
    place = (before[0][7 // 6] + before[1][7 // 2] + codes[7]).detach()
    assert (z[parent == 3] - place).norm(dim=1).min() < 1e-5
    assert torch.allclose(quantizer.frequency.view(-1, 2).sum(1), mass)
    assert quantizer.frequency[7] == pytest.approx(mass[3].item() / 3, rel=1e-4)
    if update == "gradient":
        moments = optimizer.state[quantizer.codes_2]["exp_avg"]
        assert (moments == 0).all(1).nonzero().tolist() == [[7]]
    else:
        assert torch.allclose(quantizer.ema_sums[7] / quantizer.ema_counts[7], place, atol=1e-5)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_dead_parent_becomes_its_most_used_sibling_with_the_subtree(update):
    dead, below = 1, slice(6, 12)  # node 1 of level 0 and its leaves
    quantizer, z, optimizer = dying(update, leaves=below)
    shares = quantizer.frequency.view(4, 6).sum(1)
    twin = int(shares.argmax())
    before = [codes.detach().clone() for codes in quantizer.codebooks]
    with torch.no_grad():
        quantizer._copy_siblings(0, z, [optimizer])
    after = [codes.detach() for codes in quantizer.codebooks]
    for level, width in ((1, 3), (2, 6)):
        subtrees = after[level].view(4, width, 4)
        assert torch.equal(subtrees[dead], before[level].view(4, width, 4)[twin])
        others = [i for i in range(4) if i != dead]
        assert torch.equal(subtrees[others], before[level].view(4, width, 4)[others])
    assert 0 < (after[0][dead] - before[0][twin]).norm() < z.norm(dim=1).max()
    halves = quantizer.frequency.view(4, 6).sum(1)
    assert torch.allclose(halves[[dead, twin]], shares[twin] / 2)
    chosen = descend(z, quantizer.codebooks, BRANCHING)[1] // 6
    assert (chosen == dead).any()
    assert (chosen == twin).any()
    if update == "gradient":
        moments = optimizer.state[quantizer.codes_2]["exp_avg"]
        assert (moments == 0).all(1).nonzero().flatten().tolist() == list(range(6, 12))
    else:  # the next update leaves the copy where it is
        quantizer.move_to_means(torch.zeros(24), torch.zeros(24, 4))
        assert torch.allclose(quantizer.codebooks[0][dead], after[0][dead], atol=0.3)
        assert not torch.allclose(quantizer.codebooks[0][dead], before[0][dead], atol=0.3)


def live_leaves(update, revive_below, steps=400):
    """Train on three clusters that soon move elsewhere; return how many of 9 leaves are in use."""
    torch.manual_seed(0)
    quantizer = tree(
        codebook_size=9,
        branching=[3, 3],
        num_tokens=1,
        update=update,
        decay=0.9,
        revive_below=revive_below,
        revive_every=10,
    )
    optimizer = torch.optim.Adam(sgd(quantizer).param_groups[0]["params"], lr=0.02)
    first, second = 2 * torch.randn(2, 3, 4)
    for i in range(steps):
        centres = first if i < 5 else second
        z = centres[torch.randint(3, (128,))] + 0.3 * torch.randn(128, 4)
        step(quantizer, z.unsqueeze(1), optimizer)
    z = second[torch.randint(3, (4096,))] + 0.3 * torch.randn(4096, 4)
    return len(descend(z, quantizer.codebooks, quantizer.branching)[1].unique())


@pytest.mark.slow
def test_no_leaf_dies_on_fewer_clusters_than_leaves_when_revival_is_on():
    assert live_leaves("ema", revive_below=0.3) == 9
    assert live_leaves("gradient", revive_below=0.3) == 9
    assert live_leaves("ema", revive_below=0.0) < 5
    assert live_leaves("gradient", revive_below=0.0) < 9  # 3, 6 and 8 over three seeds


def test_ema_codes_on_a_path_sum_to_the_running_mean_of_its_vectors():
    quantizer, z = tree(update="ema", revive_below=0.0, decay=0.5), clustered(600).view(100, 6, 4)
    assert "codebook" not in quantizer(z).losses
    assert not list(quantizer.parameters())
    for _ in range(4):
        step(quantizer, z + 0.1 * torch.randn_like(z), sgd(quantizer))
    means = quantizer.ema_sums / quantizer.ema_counts.unsqueeze(1)
    used = quantizer.ema_counts > 0.1
    assert used.sum() > 20
    assert torch.allclose(quantizer.tables()[-1][used], means[used], atol=1e-4)


class TestOtherTrees(QuantizerConformance):
    """The kit on what the registered default leaves out: running means, leaf tokens, many codes."""

    @pytest.fixture
    def build(self):
        options = {"branching": [2, 64], "update": "ema", "tokens": "leaf", "revive_every": 2}
        sizes = {"dim": 8, "num_tokens": 16, "codebook_size": 128}
        return lambda: spectok.create_quantizer("tree", **sizes, **options, revive_below=0.9)


# -- the tokenizer ---------------------------------------------------------------------------------


def test_the_first_levels_decode_alone_and_levels_can_be_left_out():
    model = tiny().eval()
    indices = model.encode(torch.rand(2, 1, 16, 16) * 2 - 1)
    with torch.no_grad():
        for levels in (1, 2, 3):
            found = model.decode(indices, num_tokens=16 * levels)
            same = model.decode_levels(indices, range(levels))
            assert torch.allclose(found, same, atol=1e-6)
        assert not torch.allclose(model.decode_levels(indices, [1, 2]), same, atol=1e-3)
    with pytest.raises(InputError, match=r"levels \[3\] are not some of 0 to 2"):
        model.decode_levels(indices, [3])
    with pytest.raises(InputError, match="EMAQuantizer has no levels"):
        tiny(quantizer="ema").decode_levels(indices[:, :16], [0])


def test_a_gpt_prior_learns_and_samples_its_tokens():
    model = tiny().eval()
    tokens = model.encode(torch.rand(4, 1, 16, 16) * 2 - 1)
    spec = model.token_spec
    prior = create_prior("gpt", spec, num_layers=1, num_heads=2, width=16, dropout=0.0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=2e-2)
    losses = []
    for _ in range(25):
        loss = prior(tokens).losses["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    sampled = sample_tokens(prior.eval(), 2)
    spec.validate(sampled)
    assert model.decode(sampled).shape == (2, 1, 16, 16)


# -- pictures and statistics -----------------------------------------------------------------------


def test_levels_are_drawn_from_all_to_the_last_alone():
    model, images = tiny().eval(), torch.rand(2, 1, 16, 16) * 2 - 1
    pictures = level_pictures(model, images)
    assert pictures.shape == (2, 4, 1, 16, 16)
    indices = model.encode(images)
    with torch.no_grad():
        assert torch.equal(pictures[:, 0], images)
        assert torch.allclose(pictures[:, 1], model.decode(indices), atol=1e-6)
        assert torch.equal(pictures[:, 3], model.decode_levels(indices, [2]))
    with pytest.raises(InputError, match="EMAQuantizer is not a tree"):
        level_pictures(tiny(quantizer="ema"), images)


@pytest.mark.parametrize("tokens", ["path", "leaf"])
def test_live_nodes_are_counted_per_level(tokens):
    model = tiny(quantizer={"name": "tree", "branching": BRANCHING, "tokens": tokens})
    leaves = torch.tensor([0, 1, 6, 6]).repeat(4, 4)  # two under node 0 of level 1, one under 3
    paths = path_of(leaves, BRANCHING)
    indices = leaves if tokens == "leaf" else paths.movedim(-1, 1).flatten(1)
    use = level_use(model, indices)
    assert [(level.num_nodes, level.num_live) for level in use] == [(4, 2), (12, 2), (24, 3)]
    assert use[0].perplexity == pytest.approx(2)
    assert use[2].perplexity == pytest.approx(2**1.5)
