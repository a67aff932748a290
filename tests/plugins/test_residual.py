"""What is particular to RQ-VAE and HQ-VAE: sums of codes, depth by depth and block by block."""

import itertools

import pytest
import torch

import spectok
from spectok.errors import ConfigError, InputError
from spectok.testing import QuantizerConformance
from spectok.testing.small import small_quantizer, small_tokenizer
from spectok.token_spec import TokenSpec
from spectok_residual.token_space import BlockTokens


def rq(**options):
    torch.manual_seed(0)
    base = {"dim": 4, "num_tokens": 6, "codebook_size": 16}
    return spectok.create_quantizer("rq", **(base | options)).train()


def hq(**options):
    torch.manual_seed(0)
    base = {"dim": 8, "num_tokens": 6, "codebook_size": 16}
    return spectok.create_quantizer("hq", **(base | options)).train()


def train(quantizer, steps=30):
    for _ in range(steps):
        quantizer(torch.randn(32, quantizer.num_tokens, quantizer.dim))
        quantizer.after_step()
    return quantizer


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(8, 6, 4)


# -- RQ --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_each_depth_takes_the_code_nearest_to_what_is_left(z, shared):
    quantizer = rq(num_levels=3, shared_codebook=shared)
    assert quantizer.codebook.shape[0] == (1 if shared else 3)
    indices, residual = quantizer.encode(z), z
    for level in range(3):
        codes = quantizer.codebook[0 if shared else level]
        distances = (residual.unsqueeze(2) - codes).norm(dim=-1)
        assert torch.equal(indices[..., level], distances.argmin(-1))
        residual = residual - codes[indices[..., level]]
        partial = quantizer.lookup(indices[..., : level + 1])
        assert torch.allclose(z - partial, residual, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_left_falls_depth_by_depth(shared):
    quantizer = train(rq(num_levels=4, shared_codebook=shared))
    metrics = quantizer.eval()(torch.randn(64, 6, 4)).metrics
    energies = [metrics[f"residual_level{i}"].item() for i in range(4)]
    assert all(later < 0.9 * earlier for earlier, later in itertools.pairwise([1.0, *energies]))


def test_the_encoder_is_committed_to_every_partial_sum(z):
    quantizer = rq(num_levels=3, commitment_weight=0.5)
    vectors = z.clone().requires_grad_()
    output = quantizer(vectors)
    partial = [quantizer.lookup(output.indices[..., : k + 1]) for k in range(3)]
    expected = 0.5 * torch.stack([(z - p).square().mean() for p in partial]).mean()
    assert output.losses["commitment"].item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = torch.autograd.grad(output.losses["commitment"], vectors)
    wanted = 0.5 * 2 * torch.stack([z - p for p in partial]).mean(0) / z.numel()
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_shared_codebook_follows_the_residuals_of_all_depths(z):
    quantizer = rq(num_levels=2, codebook_size=2, decay=0.5, revive_below=0.0)
    before = quantizer.codebook[0].clone()
    indices = quantizer(z).indices
    quantizer.after_step()
    seen = torch.cat([z, z - before[indices[..., 0]]], dim=1).flatten(0, 1)
    chosen = torch.cat([indices[..., 0], indices[..., 1]], dim=1).flatten()
    assert set(chosen.tolist()) == {0, 1}  # otherwise the first step moves the other one elsewhere
    for k in range(2):
        assert torch.allclose(quantizer.codebook[0, k], seen[chosen == k].mean(0), atol=1e-5)


def test_revival_restarts_the_running_mean_of_the_depths_codebook(z):
    quantizer = rq(num_levels=2, shared_codebook=False)
    quantizer(z)
    quantizer.after_step()
    before = quantizer.ema_sums.clone()
    quantizer.set_codes(1, torch.tensor([3]), torch.full((1, 4), 7.0))
    mean = quantizer.ema_sums[1, 3] / quantizer.ema_counts[1, 3]
    assert torch.allclose(mean, torch.tensor(7.0))
    assert torch.equal(quantizer.ema_sums[0], before[0])


def test_memory_is_bounded_with_more_codes():
    QuantizerConformance().test_memory_is_bounded(lambda: small_quantizer("rq", codebook_size=256))


def test_rqvae_reads_a_place_and_then_the_next_or_all_of_a_depth():
    spec = small_tokenizer("rqvae").token_spec
    assert (spec.order, spec.prefix, spec.num_levels, spec.num_tokens) == (
        "position",
        "none",
        4,
        64,
    )
    assert spec.level_of_place[:5] == (0, 1, 2, 3, 0)
    model = small_tokenizer("rqvae", token_order="level").eval()
    assert (model.token_spec.order, model.token_spec.prefix) == ("level", "levels")
    indices = model.encode(torch.rand(1, 1, 16, 16))
    assert model.decode(indices, num_tokens=16).shape == (1, 1, 16, 16)


def test_a_prefix_of_levels_decodes_from_all_of_them_and_no_later_one():
    model = small_tokenizer("rqvae", token_order="level").eval()
    length = model.token_spec.levels[0].num_tokens
    indices = model.encode(torch.rand(1, 1, 16, 16))
    for k in (length, 2 * length, 3 * length):
        last, later = indices.clone(), indices.clone()
        last[:, k - 1] = (last[:, k - 1] + 1) % model.token_spec.vocab_sizes[k - 1]
        later[:, k] = (later[:, k] + 1) % model.token_spec.vocab_sizes[k]
        reference = model.decode(indices, num_tokens=k)
        assert torch.equal(model.decode(later, num_tokens=k), reference)
        assert not torch.equal(model.decode(last, num_tokens=k), reference)


def test_a_quantizer_of_one_level_has_no_order_to_choose():
    assert small_tokenizer("rqvae", quantizer="vq").token_spec.order == "level"


# -- HQ --------------------------------------------------------------------------------------------


def test_bottom_codes_are_for_what_the_top_code_left():
    quantizer = train(hq(num_parts=2)).eval()
    z = torch.randn(5, 6, 8)
    indices = quantizer(z).indices
    assert indices.shape == (5, 6, 3)
    assert torch.equal(indices[..., :1], quantizer.top.encode(z))
    left = z - quantizer.top.lookup(indices[..., :1])
    below = quantizer.bottom.encode(quantizer.cut(left))
    assert torch.equal(quantizer.join(below), indices[..., 1:])
    # another top code leaves something else, and with it go the bottom codes
    other = z - quantizer.top.lookup((indices[..., :1] + 1) % 16)
    assert not torch.equal(quantizer.bottom.encode(quantizer.cut(other)), below)


def test_each_part_that_is_given_adds_its_own_dimensions():
    quantizer = train(hq(num_parts=2)).eval()
    z = torch.randn(64, 6, 8)
    indices = quantizer.encode(z)
    top, half, whole = (quantizer.lookup(indices[..., :k]) for k in (1, 2, 3))
    assert torch.equal(half[..., 4:], top[..., 4:])
    assert torch.equal(half[..., :4], whole[..., :4])
    errors = [(z - v).square().mean() for v in (top, half, whole)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("num_codebooks", "kind", "per_part"),
    [(1, "shared", 1), (2, "shared", 1), (4, "shared", 1), (8, "position", 2), (24, "position", 6)],
)
def test_the_codebooks_that_parts_have_are_declared(num_codebooks, kind, per_part):
    """Four parts of six places: two codebooks serve two parts each, eight serve half a part."""
    quantizer = hq(num_parts=4, bottom={"name": "voronoi", "num_codebooks": num_codebooks}).eval()
    spec = TokenSpec(tuple(level.at((6,)) for level in quantizer.levels))
    assert [(v.codebook, v.num_codebooks) for v in spec.levels[1:]] == [(kind, per_part)] * 4
    # Two tokens of a part are the same code exactly if the spec gives them the same number.
    indices = torch.full((1, 6, 5), 3)
    detail = quantizer.cut(quantizer.lookup(indices) - quantizer.top.lookup(indices[..., :1]))
    ids = spec.code_ids(spec.flatten(list(indices.unbind(-1))))
    for part, vectors in zip(spec.unflatten(ids)[1:], detail[0].split(6)):
        same = torch.cdist(vectors, vectors) < 1e-5
        assert torch.equal(same, part[0][:, None] == part[0])


def test_codebooks_across_parts_are_refused():
    with pytest.raises(
        InputError, match=r"3 bottom codebooks for 4 places .* num_codebooks be 1, 2"
    ):
        hq(num_parts=2, bottom={"name": "voronoi", "num_codebooks": 3})


def test_dropped_images_are_decoded_from_their_top_codes():
    quantizer = hq(num_parts=2, bottom_dropout=0.2)
    z = torch.randn(64, 6, 8)
    output = quantizer(z)
    tops, wholes = (quantizer.lookup(output.indices[..., :k]) for k in (1, 3))
    dropped = (output.z_q == tops).flatten(1).all(1)
    assert 4 < dropped.sum() < 24
    assert torch.equal(output.z_q[~dropped], wholes[~dropped])
    assert torch.equal(quantizer.eval()(z).z_q, wholes)


@pytest.mark.parametrize(
    ("top", "bottom"),
    [("fsq", "voronoi"), ("vq", {"name": "tree", "num_levels": 2}), ("rq", "residual_lfq")],
)
def test_any_quantizer_serves_as_top_or_bottom(top, bottom):
    options = {"name": "hq", "top": top, "bottom": bottom}
    model = small_tokenizer("hqvae", quantizer=options).train()
    images = torch.rand(4, 1, 16, 16)
    output = model(images)
    torch.stack([v for v in output.losses.values()]).sum().backward()
    model.before_step()
    model.after_step([])
    model.eval()
    indices = model.encode(images)
    assert indices.max() < model.token_spec.num_codes
    assert model.token_spec.code_ids(indices).max() < model.token_spec.num_codes
    with torch.no_grad():
        assert torch.allclose(model.decode(indices), model(images).reconstruction, atol=1e-5)
    assert torch.equal(model.quantizer.top.num_steps, torch.tensor(1))


def test_both_quantizers_forget_a_skipped_step():
    quantizer = hq(num_parts=2)
    quantizer(torch.randn(4, 6, 8))
    assert quantizer.top.pending_counts.any()
    assert quantizer.bottom.pending_counts.any()
    quantizer.skip_step()
    assert not quantizer.top.pending_counts.any()
    assert not quantizer.bottom.pending_counts.any()


def test_hqvae_reads_local_pyramids():
    model = small_tokenizer("hqvae")
    spec = model.token_spec
    assert [v.shape for v in spec.levels] == [(2, 2)] * 5
    assert spec.level_of_place[:6] == (0, 1, 2, 3, 4, 0)
    assert spec.bits_per_image == 5 * 4 * 5  # a top and four bottom codes of 5 bits, four times


def test_blocks_hold_their_pixels_one_after_another():
    space, latents = BlockTokens(4, 6, channels=3, block_size=2), torch.randn(2, 3, 4, 6)
    vectors = space.to_vectors(latents)
    assert vectors.shape == (2, 6, 12)
    assert torch.equal(vectors[:, 4, :3], latents[:, :, 2, 2])
    assert torch.equal(vectors[:, 4, 9:], latents[:, :, 3, 3])
    assert torch.equal(space.to_latents(vectors), latents)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="num_parts 3 does not divide vectors of length 8"):
        hq(num_parts=3)
    with pytest.raises(InputError, match=r"set quantizer\.num_parts to 16"):
        small_tokenizer("hqvae", block_size=4)
    with pytest.raises(InputError, match="block_size 3 does not divide latents of 4×4"):
        small_tokenizer("hqvae", block_size=3)
    with pytest.raises(InputError, match="attention_sizes"):
        small_tokenizer("rqvae", attention_sizes=[5])
    with pytest.raises(ConfigError, match="unknown key"):
        hq(bottom={"name": "ema", "decya": 0.9})
