"""What is particular to QG-VAE: global tokens, one codebook each, resets, ordered prefixes."""

import itertools

import pytest
import torch

import spectok
from spectok.errors import ConfigError, InputError
from spectok.training.recipe import load_tokenizer_recipe
from spectok_qgvae.pictures import feature_maps, influence, influence_pictures, prefix_pictures
from spectok_qgvae.quantizer import VoronoiQuantizer, split_pairs
from spectok_qgvae.unet import ConditionedUNet, num_levels, positional_code


def tiny(**options):
    base = {
        "image_size": 16,
        "in_channels": 1,
        "num_tokens": 6,
        "codebook_size": 8,
        "codebook_dim": 4,
        "num_heads": 3,
        "max_channels": 16,
    }
    return spectok.load_tokenizer("qgvae", **(base | options))


def voronoi(**options):
    base = {"dim": 4, "num_tokens": 6, "codebook_size": 8}
    return spectok.create_quantizer("voronoi", **(base | options)).train()


def step(quantizer, z, optimizer):
    loss = sum(quantizer(z).losses.values())
    optimizer.zero_grad()
    loss.backward()
    quantizer.before_step()
    optimizer.step()
    quantizer.after_step([optimizer])


# -- the batched search ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_codebooks", [None, 1, 2, 3])
def test_batched_search_equals_the_naive_form(num_codebooks):
    quantizer, z = voronoi(num_codebooks=num_codebooks), torch.randn(5, 6, 4)
    codebooks = quantizer.codebook  # (G, K, D)
    run = 6 // len(codebooks)
    owner = torch.arange(6) // run
    difference = z.unsqueeze(2) - codebooks[owner].unsqueeze(0)  # (B, N, K, D)
    naive = difference.square().sum(-1).argmin(-1)
    output = quantizer(z)
    assert torch.equal(output.indices.squeeze(-1), naive)
    assert torch.equal(output.z_q, codebooks[owner, naive])


def test_codebooks_must_divide_the_tokens():
    with pytest.raises(InputError, match="num_codebooks 4 does not divide the 6 tokens"):
        voronoi(num_codebooks=4)


def test_weights_are_on_the_terms_of_equation_6():
    quantizer, z = voronoi(), torch.randn(2, 6, 4, requires_grad=True)
    losses = quantizer(z).losses
    assert losses["commitment"].item() == pytest.approx(4 * losses["codebook"].item())
    (encoder,) = torch.autograd.grad(losses["commitment"], z)
    assert encoder.abs().sum() > 0
    (codes,) = torch.autograd.grad(losses["codebook"], quantizer.codebook)
    assert codes.abs().sum() > 0


# -- Voronoi resets --------------------------------------------------------------------------------


def pairs_by_the_loop_of_the_text(magnitude):
    """The reset of section 3.3 one entry at a time: least against largest, until none is left."""
    magnitude, pairs = magnitude.clone(), []
    for position, row in enumerate(magnitude):
        floor = 1e-6 * row.max()
        while row.min() == 0 and row.max() > floor:
            unused, overused = int(row.argmin()), int(row.argmax())
            pairs.append((position * len(row) + unused, position * len(row) + overused))
            row[unused] = row[overused] = floor
    return pairs


def test_vectorised_pairs_equal_the_loop():
    magnitude = torch.rand(5, 12) * (torch.rand(5, 12) < 0.4)
    magnitude[0] = 0
    magnitude[1] = torch.rand(12) + 0.1
    moved, onto = split_pairs(magnitude)
    assert list(zip(moved.tolist(), onto.tolist())) == pairs_by_the_loop_of_the_text(magnitude)


def test_reset_moves_only_unused_codes_next_to_the_most_overused():
    quantizer = voronoi(num_codebooks=1, displacement=1e-3)
    before = quantizer.codebook.detach().clone()
    quantizer.magnitude.copy_(torch.tensor([[0, 5.0, 0, 2.0, 0, 0, 0, 1.0]]))
    quantizer.reset([])
    after = quantizer.codebook.detach()[0]
    for unused, overused in [(0, 1), (2, 3), (4, 7)]:
        distance = (after[unused] - before[0, overused]).abs().max()
        assert 0 < distance <= 1e-3
    # The used codes, and the unused ones there was nothing left to split for.
    untouched = [1, 3, 5, 6, 7]
    assert torch.equal(after[untouched], before[0, untouched])


def test_a_reset_at_most_doubles_the_codes_in_use_and_then_splits_cells():
    torch.manual_seed(0)
    centres = torch.randn(32, 4) * 2
    quantizer = voronoi(num_tokens=1, codebook_size=32, reset_every=20)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    used = []
    for i in range(240):
        z = centres[torch.randint(32, (64,))].unsqueeze(1) + 0.05 * torch.randn(64, 1, 4)
        if i % 20 == 19:
            used.append(len(quantizer.encode(centres.unsqueeze(1)).unique()))
        step(quantizer, z, optimizer)
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(used))
    assert used[0] <= 16
    assert used[-1] >= 30


def test_reset_halves_the_load_of_split_codes():
    torch.manual_seed(1)
    quantizer = voronoi(num_tokens=1, codebook_size=2, reset_every=10)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[[0.0, 0, 0, 0], [9.0, 9, 9, 9]]]))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(60):
        side = torch.randint(2, (64, 1, 1)) * 2.0 - 1
        step(quantizer, side + 0.1 * torch.randn(64, 1, 4), optimizer)
    share = torch.bincount(quantizer(side + torch.zeros(64, 1, 4)).indices.flatten(), minlength=2)
    assert (share / 64).max() < 0.75  # one code served everything before the first reset


def test_reset_divides_the_frequency_of_a_split_code_between_the_two():
    quantizer = voronoi(num_codebooks=2, codebook_size=3)
    quantizer.frequency.copy_(torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    quantizer.magnitude.copy_(torch.tensor([[0, 5.0, 1.0], [1.0, 0, 2.0]]))
    quantizer.reset([])
    expected = [[0.4, 0.4, 0.1], [0.2, 0.3, 0.3]]
    assert quantizer.frequency.tolist() == [pytest.approx(row) for row in expected]


def test_reset_clears_the_moments_of_moved_codes_only():
    quantizer = voronoi(num_codebooks=1)
    optimizer = torch.optim.Adam(quantizer.parameters())
    step(quantizer, torch.randn(8, 6, 4), optimizer)
    state = optimizer.state[quantizer.codebook]
    state["exp_avg"].fill_(1.0)
    quantizer.magnitude.copy_(torch.tensor([[0, 5.0, 1, 1, 1, 1, 1, 1]]))
    quantizer.reset([optimizer])
    assert (state["exp_avg"][0, 0] == 0).all()
    assert (state["exp_avg"][0, 1:] == 1).all()


def test_a_gradient_that_is_not_finite_adds_nothing():
    quantizer = voronoi(reset_every=2)
    quantizer(torch.randn(8, 6, 4)).losses["codebook"].backward()
    expected = quantizer.codebook.grad.abs().mean(-1)
    used = expected[0].nonzero().flatten()
    for row, value in zip(used[:2], (torch.inf, torch.nan)):
        quantizer.codebook.grad[0, row, 1] = value
        expected[0, row] = 0
    quantizer.before_step()
    assert quantizer.magnitude.equal(expected)
    assert len(split_pairs(quantizer.magnitude)[0]), "one infinity would hide every cell to split"


@pytest.mark.parametrize(("last_reset", "moved_at"), [(None, [2, 4, 6, 8]), (5, [2, 4]), (0, [])])
def test_nothing_is_reset_after_the_last_reset(last_reset, moved_at, monkeypatch):
    quantizer, found = voronoi(reset_every=2, last_reset=last_reset), []
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    monkeypatch.setattr(quantizer, "reset", lambda _: found.append(quantizer.step_counter.steps))
    for _ in range(8):
        step(quantizer, torch.randn(8, 6, 4), optimizer)
    assert found == moved_at
    assert not quantizer.magnitude.any()  # the sums start afresh all the same


def test_eval_never_resets():
    quantizer = voronoi(reset_every=1).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(4, 6, 4))
    quantizer.after_step()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


# -- global tokens ---------------------------------------------------------------------------------


def touched(tokenizer, place):
    """Return where the image changes when one token does, as a boolean map."""
    torch.manual_seed(0)
    indices = tokenizer.encode(torch.rand(2, *tokenizer.image_shape) * 2 - 1)
    return influence(tokenizer, indices, [place], num_replacements=2).amax((0, 1)) > 1e-6


def test_one_token_changes_pixels_everywhere_unlike_a_grid_token():
    torch.manual_seed(0)
    assert touched(tiny().eval(), 2).float().mean() > 0.99
    grid = spectok.load_tokenizer("vqvae", image_size=32, codebook_size=8, codebook_dim=4)
    corner = touched(grid.eval(), 0)
    assert corner.float().mean() < 0.5
    assert not corner[24:, 24:].any()  # token 0 is in the other corner


def test_declares_one_codebook_per_position():
    spec = tiny().token_spec
    assert spec.levels[0].codebook == "position"
    assert spec.levels[0].num_codebooks == 6
    assert spec.num_codes == 6 * 8
    assert spec.bits_per_image == 6 * 3


def test_every_parameter_is_used():
    model = tiny(factor_levels=1, prefix_probability=0.5)
    sum(model(torch.rand(4, 1, 16, 16)).losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("factor_levels", [0, 1, 2])
def test_feature_maps_shrink_by_two_to_the_f(factor_levels):
    model = tiny(image_size=32, factor_levels=factor_levels)
    latents = model.encode_latents(torch.zeros(2, 1, 32, 32))
    assert latents.shape == (2, 6, 32 >> factor_levels, 32 >> factor_levels)
    assert latents.shape[1:] == model.latent_shape
    assert model.decode_latents(latents).shape == (2, 1, 32, 32)


def test_cifar_setting_has_the_size_of_the_authors_model():
    """6,228,750 parameters by implementation_notes §2.8, 38,691 of them unused there."""
    model = spectok.load_tokenizer("qgvae")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(6_228_750, rel=0.03)


def test_size_that_cannot_be_halved_is_refused():
    with pytest.raises(InputError, match="image_size 30 is not divisible"):
        tiny(image_size=30)
    with pytest.raises(ConfigError, match=r"qgvae\.num_tokens"):
        tiny(num_tokens=0)


def test_unet_sees_its_input_again_at_the_smallest_level():
    """There are no skip connections, so with the stem cut off only the condition is left."""
    torch.manual_seed(0)
    assert num_levels(32, 0) == 3
    unet = ConditionedUNet(1, 4, size=32, start=0, end=0, widths=[8, 8, 8, 8], num_blocks=1)
    for module in (unet.stem, unet.shortcut):
        torch.nn.init.zeros_(module.weight)
    a, b = torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    assert (unet(a) - unet(b)).abs().max() > 1e-4


def test_positional_code_tells_all_pixels_apart():
    code = positional_code(16)[0].flatten(1)  # (64, 256)
    assert torch.cdist(code.T, code.T).add(torch.eye(256)).min() > 1e-3


# -- ordered latents -------------------------------------------------------------------------------


def test_tokens_after_the_prefix_have_no_effect_and_those_before_do():
    model = tiny(prefix_probability=0.3).eval()
    torch.manual_seed(0)
    indices = torch.randint(8, (1, 6))
    for k in (0, 3, 5):
        later, earlier = indices.clone(), indices.clone()
        later[:, k:] = (later[:, k:] + 1) % 8
        reference = model.decode(indices, num_tokens=k)
        assert torch.equal(model.decode(later, num_tokens=k), reference)
        if k:
            earlier[:, k - 1] = (earlier[:, k - 1] + 1) % 8
            assert not torch.equal(model.decode(earlier, num_tokens=k), reference)
    assert torch.equal(model.decode(indices, num_tokens=6), model.decode(indices))


def test_a_prefix_of_places_with_several_codes_each_keeps_those_places_alone():
    model = tiny(prefix_probability=0.3, quantizer={"name": "rq", "num_levels": 2}).eval()
    assert model.token_spec.decodable_prefixes == (0, 2, 4, 6, 8, 10, 12)
    indices = torch.randint(8, (1, 12))
    later, earlier = indices.clone(), indices.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 8
    earlier[:, 3] = (earlier[:, 3] + 1) % 8
    reference = model.decode(indices, num_tokens=4)
    assert torch.equal(model.decode(later, num_tokens=4), reference)
    assert not torch.equal(model.decode(earlier, num_tokens=4), reference)


def test_prefixes_are_drawn_for_the_stated_share_and_only_in_training():
    model = tiny(prefix_probability=1 / 3)
    torch.manual_seed(0)
    kept = model.draw_prefix(3000)
    shortened = kept[kept < 6]
    assert len(shortened) / 3000 == pytest.approx(1 / 3, abs=0.04)
    assert set(shortened.tolist()) == set(range(6))
    images = torch.rand(2, 1, 16, 16)
    model.eval()
    assert torch.equal(model(images).reconstruction, model.decode(model.encode(images)))


def waves(count):
    """Draw images that are sums of six patterns, each weaker than the one before."""
    places = torch.linspace(0, torch.pi, 16)
    basis = torch.stack([torch.cos(k * places) for k in range(3)])
    patterns = torch.einsum("ah,bw->abhw", basis, basis).flatten(0, 1)[:6]
    strength = torch.randn(count, 6) * 0.5 * 0.7 ** torch.arange(6)
    return torch.einsum("bk,khw->bhw", strength, patterns).unsqueeze(1).clamp(-1, 1)


def trained_on_waves(prefix_probability):
    """Train for 200 steps of 16 images; weights and resets are those of the recipe for digits."""
    torch.manual_seed(0)
    quantizer = {"name": "voronoi", "reset_every": 10}
    quantizer |= {"commitment_weight": 0.02, "codebook_weight": 0.05}
    sizes = {"codebook_size": 32, "factor_levels": 1, "quantizer": quantizer}
    model = tiny(prefix_probability=prefix_probability, **sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    for _ in range(200):
        loss = sum(model(waves(16)).losses.values())
        optimizer.zero_grad()
        loss.backward()
        model.before_step()
        optimizer.step()
        model.after_step([optimizer])
    return model.eval()


@torch.no_grad()
def prefix_psnr(model, images):
    """Return what the first 0, 1, …, 6 tokens decode to, also where a prefix need not mean much."""
    z = model.embed(model.encode(images))
    kept = (torch.full((len(images),), k) for k in range(7))
    decoded = (model.decoder(model.token_space.to_latents(z, keep)) for keep in kept)
    return [-10 * (one - images).square().mean().log10().item() for one in decoded]


@torch.no_grad()
def harm(model, images):
    """Return by what factor the error grows with another image's token at each place."""
    indices, errors = model.encode(images), []
    for place in range(-1, 6):
        other = indices.clone()
        if place >= 0:
            other[:, place] = other.roll(1, 0)[:, place]
        errors.append((model.decode(other) - images).square().mean().item())
    return [error / errors[0] for error in errors[1:]]


@pytest.mark.slow
def test_first_tokens_matter_most_when_ordered_and_not_otherwise():
    """Over three seeds, of six tokens the first two were 3 dB below all, unordered 9 to 12 dB; an
    exchange of the first was 6 to 8 times the error, of any other below 3, unordered like any.
    """
    ordered, unordered = trained_on_waves(0.5), trained_on_waves(0.0)
    images = waves(128)
    psnr, control = prefix_psnr(ordered, images), prefix_psnr(unordered, images)
    decoded = prefix_pictures(ordered, images, lengths=[0, 1, 2, 4, 6])[:, 1:]
    errors = (decoded - images.unsqueeze(1)).square().mean((0, 2, 3, 4))
    assert (-10 * errors.log10()).tolist() == pytest.approx([psnr[k] for k in (0, 1, 2, 4, 6)])
    assert psnr[0] < psnr[1] < psnr[2] < psnr[4] < psnr[6]
    assert psnr[2] > psnr[6] - 5
    assert control[2] < control[6] - 7
    first, *others = harm(ordered, images)
    assert first > 2 * max(others)
    first, *others = harm(unordered, images)
    assert first < max(others)


# -- pictures --------------------------------------------------------------------------------------


def test_feature_maps_are_drawn_each_on_its_own_scale():
    model, images = tiny(factor_levels=1).eval(), torch.rand(2, 1, 16, 16)
    maps = feature_maps(model, images, [4, 1])
    assert maps.shape == (2, 2, 1, 8, 8)
    for extreme, value in [(maps.amin((3, 4)), -1.0), (maps.amax((3, 4)), 1.0)]:
        assert torch.allclose(extreme, torch.full_like(extreme, value), atol=1e-3)
    raw = model.encode_latents(images)[0, 4]
    assert maps[0, 0, 0].flatten().argmax() == raw.flatten().argmax()


def test_influence_is_the_mean_change_over_all_other_values():
    model = tiny(codebook_size=3).eval()
    indices = torch.randint(3, (2, 6))
    with torch.no_grad():
        images = [model.decode((indices + torch.eye(6)[5].long() * s) % 3) for s in range(3)]
    expected = sum((image - images[0]).abs()[:, 0] for image in images[1:]) / 2
    change = influence(model, indices, [0, 5])
    assert change.shape == (2, 2, 16, 16)
    assert torch.allclose(change[:, 1], expected, atol=1e-6)
    pictures = influence_pictures(change)
    assert pictures.shape == (2, 2, 3, 16, 16)
    assert pictures.abs().max() <= 1


def test_prefixes_are_drawn_from_nothing_to_everything():
    model = tiny(prefix_probability=0.5).eval()
    images = torch.rand(2, 1, 16, 16)
    pictures = prefix_pictures(model, images)
    assert pictures.shape == (2, 6, 1, 16, 16)  # the image; 0, 1, 2, 4 and 6 tokens
    assert torch.equal(pictures[0, 1], pictures[1, 1])
    assert torch.equal(pictures[:, -1], model.decode(model.encode(images)))
    with pytest.raises(InputError, match="does not decode on its own"):
        prefix_pictures(tiny().eval(), images, lengths=[3])


# -- partially shared codebooks --------------------------------------------------------------------


def test_shared_codebooks_save_codes_and_are_declared():
    """Appendix B: one codebook for a run of tokens, as the heads share an affine map."""
    model = tiny(quantizer={"name": "voronoi", "num_codebooks": 2})
    level = model.token_spec.levels[0]
    assert (level.codebook, level.num_codebooks) == ("position", 2)
    assert model.token_spec.num_codes == 2 * 8
    tokens = torch.full((1, 6), 5)
    vectors = model.embed(tokens)[0]
    assert torch.equal(vectors[0], vectors[2])  # of one run
    assert not torch.equal(vectors[2], vectors[3])
    options = dict(
        load_tokenizer_recipe("qgvae/imagenet128_shared", ["tokenizer.max_channels=8"]).tokenizer
    )
    spec = spectok.load_tokenizer(options.pop("name"), **options).token_spec
    assert spec.levels[0].num_codebooks == options["num_tokens"] // 16


def test_unordered_models_do_not_claim_prefixes():
    with pytest.raises(InputError, match="does not decode on its own"):
        tiny().decode(torch.zeros(1, 6, dtype=torch.int64), num_tokens=3)


def test_the_quantizer_class_is_what_the_registry_gives():
    assert isinstance(voronoi(), VoronoiQuantizer)


def test_positions_do_not_depend_on_the_precision_of_loading():
    # a seventh is no number of bfloat16: its sines at 2^15 would be others
    whole, half = (
        dict(spectok.load_tokenizer("qgvae/mnist", torch_dtype=dtype).named_buffers())
        for dtype in ("float32", "bfloat16")
    )
    for name in ("encoder.position", "decoder.network.position"):
        assert torch.equal(half[name], whole[name].bfloat16())
