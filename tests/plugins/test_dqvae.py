"""What is particular to DQ-VAE: the router, its budget, and tokens that are not read."""

import math

import numpy as np
import pytest
import torch

import spectok
from spectok.errors import ConfigError, InputError, TokenError
from spectok.testing.learners import ImageLearner, fit, take_step
from spectok.testing.ranks import on_two_ranks
from spectok.testing.small import small_tokenizer
from spectok.training.recipe import load_tokenizer_recipe
from spectok_vq.grains import DualGrains, GrainRouter, at_places, budget_loss, draw_gates


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return ImageLearner(small_tokenizer("dqvae")).batch(8)


@pytest.fixture(scope="module")
def model(images):
    """Return a small DQ-VAE that has learned something, with grains of both kinds."""
    torch.manual_seed(0)
    model = small_tokenizer("dqvae")
    fit(ImageLearner(model), images, steps=20, learning_rate=3e-3)
    with torch.no_grad():  # move the threshold into the middle of the logits
        latents = model.eval().encode_latents(images)
        logits = model.token_space.router(model.token_space.coarsen(latents), latents)
        model.token_space.router.layers[-1].bias -= logits.median() + 1e-6
    return model


def split(indices):
    """Return the map of grains (B, 2, 2), and the codes (B, 2, 2, 4) of each region's places."""
    places = indices[:, 4:].view(-1, 2, 2, 2, 2).transpose(2, 3).flatten(3)
    return indices[:, :4].view(-1, 2, 2), places


# -- tokens ---


def test_the_map_of_grains_comes_before_the_codes_of_all_places(model):
    grains, codes = model.token_spec.levels
    assert (grains.shape, grains.vocab_size) == ((2, 2), 2)
    assert (codes.shape, codes.vocab_size) == ((4, 4), 32)
    assert model.token_spec.bits_per_image == 4 * 1 + 16 * 5


def test_a_coarse_region_has_one_code_at_its_four_places(model, images):
    fine, codes = split(model.encode(images))
    assert 0 < fine.sum() < fine.numel(), "both grains occur"
    alike = (codes == codes[..., :1]).all(-1)
    assert alike[fine == 0].all()
    assert not alike[fine == 1].all()


def test_decoding_reads_of_a_coarse_region_its_first_place_alone(model, images):
    indices = model.encode(images)
    whole, (fine, _) = model.decode(indices), split(indices)
    for image, row, column in torch.cartesian_prod(*(torch.arange(n) for n in fine.shape)):
        for place in range(4):
            other = indices.clone()
            number = 4 + 4 * (2 * row + place // 2) + 2 * column + place % 2
            other[image, number] = (other[image, number] + 1) % 32
            same = torch.equal(model.decode(other), whole)
            assert same == (fine[image, row, column] == 0 and place > 0)


def test_what_is_not_read_is_written_alike_whatever_came_before(model, images):
    """Equal images give equal tokens, and what decodes to an image encodes in one way."""
    indices = model.encode(images)
    assert torch.equal(model.encode(images.flip(0)).flip(0), indices)
    fine, codes = split(indices)
    junk = torch.where((fine == 1)[..., None], codes, torch.randint_like(codes, 32))
    junk[..., 0] = codes[..., 0]
    places = junk.unflatten(3, (2, 2)).transpose(2, 3).flatten(1)
    mixed = torch.cat([indices[:, :4], places], dim=1)
    assert not torch.equal(mixed, indices)
    assert torch.equal(model.embed(mixed), model.embed(indices))


def test_any_tokens_inside_the_spec_decode(model):
    limits = torch.tensor(model.token_spec.vocab_sizes)
    drawn = (torch.rand(8, model.token_spec.num_tokens) * limits).long()
    assert model.decode(drawn).isfinite().all()
    drawn[0, 0] = 2
    with pytest.raises(TokenError, match="index 2 of image 0 at place 0"):
        model.decode(drawn)


def test_tokens_and_bits_that_are_used_are_counted(model, images):
    output = model(images)
    fine, _ = split(output.indices)
    codes = 4 + 3 * fine.flatten(1).sum(1).double().mean()  # one each, and three more if fine
    assert output.metrics["fine_share"] == fine.double().mean()
    assert output.metrics["tokens_used"] == pytest.approx(float(4 + codes))
    assert output.metrics["bits_used"] == pytest.approx(float(4 + 5 * codes))
    assert output.metrics["tokens_used"] < model.token_spec.num_tokens


def test_several_levels_of_codes_count_each():
    model = small_tokenizer("dqvae", quantizer={"name": "rq", "num_levels": 3})
    assert [level.shape for level in model.token_spec.levels] == [(2, 2)] + [(4, 4)] * 3
    spent = model.spent(torch.ones(1, 2, 2, dtype=torch.bool))
    assert spent["tokens_used"] == model.token_spec.num_tokens
    assert spent["bits_used"] == model.token_spec.bits_per_image


def test_codebooks_of_positions_serve_a_coarse_region_by_its_first(images):
    """Its copies then stand for other codes, which are not read."""
    options = {"name": "voronoi", "num_codebooks": 16}
    model = small_tokenizer("dqvae", quantizer=options).eval()
    indices = model.encode(images)
    fine, _ = split(indices)
    assert 0 in fine
    torch.testing.assert_close(model.decode(indices), model(images).reconstruction)
    vectors = model.embed(indices).view(-1, 2, 2, 2, 2, 8).transpose(2, 3).flatten(3, 4)
    assert (vectors == vectors[..., :1, :])[fine == 0].all()


# -- the router ---


def test_vectors_are_those_of_the_grain_that_the_router_prefers():
    """The selection and the router, computed by numpy from the grains."""
    torch.manual_seed(0)
    space = DualGrains(4, 8, channels=8, multipliers=(1, 1), num_blocks=1, attention=False)
    latents = torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        coarse = space.coarsen(latents)
        z, gate = space.to_vectors(latents, draw=False)
        logits = space.router(coarse, latents)
    expected = router_by_numpy(space.router, coarse.numpy(), latents.numpy())
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)
    for b, y, x in np.ndindex(3, 4, 4):
        fine = expected[b, y // 2, x // 2] > 0
        assert gate[b, y // 2, x // 2] == fine
        wanted = latents[b, :, y, x] if fine else coarse[b, :, y // 2, x // 2]
        assert torch.equal(z[b, 4 * y + x], wanted)


def router_by_numpy(router: GrainRouter, coarse, fine):
    def normalized(x, norm):
        groups = x.reshape(len(x), norm.num_groups, -1)
        mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
        return ((groups - mean) / np.sqrt(variance + norm.eps)).reshape(x.shape)

    fine = normalized(fine, router.fine_norm)
    averages = sum(fine[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    both = np.concatenate([normalized(coarse, router.coarse_norm), averages], axis=1)
    first, _, last = router.layers
    hidden = np.einsum("oi,bihw->bohw", first.weight[:, :, 0, 0].detach().numpy(), both)
    hidden += first.bias.detach().numpy()[:, None, None]
    hidden *= 1 / (1 + np.exp(-hidden))
    logits = np.einsum("oi,bihw->bohw", last.weight[:, :, 0, 0].detach().numpy(), hidden)
    return logits[:, 0] + last.bias.item()


def test_grains_are_drawn_as_often_as_their_softmax_says():
    for logit in (-2.0, 0.0, 1.0):
        torch.manual_seed(0)
        gates = draw_gates(torch.full((100, 20, 20), logit))
        assert set(gates.unique().tolist()) == {0.0, 1.0}
        assert gates.mean() == pytest.approx(1 / (1 + math.exp(-logit)), abs=0.01)


def test_the_gradient_of_a_gate_is_that_of_gumbel_softmax():
    """The derivative of sigmoid(logit + noise), from the same uniform numbers."""
    logits = torch.linspace(-3, 3, 24).view(2, 3, 4).requires_grad_()
    torch.manual_seed(3)
    draw_gates(logits).sum().backward()
    torch.manual_seed(3)
    uniform = torch.rand(24).view(2, 3, 4).double().numpy()
    soft = 1 / (1 + np.exp(-(logits.detach().numpy() + np.log(uniform / (1 - uniform)))))
    np.testing.assert_allclose(logits.grad, soft * (1 - soft), rtol=1e-4)


@pytest.mark.parametrize("part", ["reconstruction", "budget"])
def test_the_gradient_reaches_the_router(images, part):
    model = small_tokenizer("dqvae", fine_share=0.3)  # no share of 32 regions
    model(images).losses[part].backward()
    for name, parameter in model.token_space.router.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_evaluation_draws_nothing(model, images):
    first = model(images).reconstruction
    torch.manual_seed(5)
    assert torch.equal(model(images).reconstruction, first)
    assert "budget" not in model(images).losses


# -- the budget ---


def test_the_budget_compares_the_share_of_each_grain_with_its_target():
    gates = (torch.arange(24) % 4 == 0).double().view(2, 3, 4).requires_grad_()
    loss = budget_loss(gates, 0.4)
    assert loss.item() == pytest.approx((0.25 - 0.4) ** 2 + (0.75 - 0.6) ** 2)
    loss.backward()
    assert torch.allclose(gates.grad, torch.tensor(4 * (0.25 - 0.4) / 24).double())
    assert budget_loss(torch.ones(1, 2, 2), 1.0) == 0


def test_the_budget_is_that_of_all_ranks():
    """Averaged over ranks, the gradient is that of one process with the whole batch."""
    gates = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).view(2, 1, 2).requires_grad_()
    whole = budget_loss(gates, 0.5)
    whole.backward()
    for rank, found in enumerate(on_two_ranks(budget_on_half, gates.detach())):
        assert found["loss"] == whole.detach()
        assert torch.equal(found["gradient"][0] / 2, gates.grad[rank])


def budget_on_half(rank, gates):
    mine = gates[rank : rank + 1].clone().requires_grad_()
    loss = budget_loss(mine, 0.5)
    loss.backward()
    return {"loss": loss.detach(), "gradient": mine.grad}


def partly_flat(count, share):
    """Return latents (B, 4, 8, 8) with detail in a share of the regions, and where that is."""
    detailed = torch.rand(count, 16).argsort(1).view(count, 1, 4, 4) < 16 * share
    flat = at_places(0.5 + torch.rand(count, 4, 4, 4))
    latents = torch.where(at_places(detailed), torch.randn(count, 4, 8, 8), flat)
    return latents, detailed[:, 0]


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_budget_is_met_by_the_regions_with_detail(share):
    """Nothing says which regions are flat but what each grain can reproduce."""
    torch.manual_seed(0)
    space = DualGrains(8, 4, channels=8, multipliers=(1, 1), num_blocks=1, attention=False)
    optimizer = torch.optim.Adam(space.parameters(), lr=1e-2)
    for _ in range(100):
        latents, _ = partly_flat(16, share)
        z, gates = space.to_vectors(latents, draw=True)
        error = (space.to_latents(z) - latents).square().mean()
        optimizer.zero_grad()
        (error + 10 * budget_loss(gates, share)).backward()
        optimizer.step()
    latents, detailed = partly_flat(200, share)
    with torch.no_grad():
        fine = space.to_vectors(latents, draw=False)[1]
    assert fine.mean() == pytest.approx(share, abs=0.1)
    assert fine[~detailed].mean() < 0.1
    assert fine[detailed].mean() > 0.9


@pytest.mark.slow
def test_a_whole_model_spends_its_codes_on_detail():
    """Images of 2×2 regions, two of them flat, two of patches: the run on the plugin's page."""
    torch.manual_seed(0)
    model = small_tokenizer("dqvae", reconstruction_loss="l2", codebook_size=16, channels=8)
    learner = ImageLearner(model).train()
    optimizer = torch.optim.Adam(learner.parameters(), lr=2e-3)
    for step in range(400):
        take_step(learner, [patches(32)[0]], optimizer, 1000 + step)
    images, detailed = patches(400)
    with torch.no_grad():
        output = model.eval()(images)
    fine, _ = split(output.indices)
    assert 0.35 < output.metrics["fine_share"] < 0.65
    assert fine[detailed].float().mean() > 0.7
    assert fine[~detailed].float().mean() < 0.3
    assert (output.reconstruction - images).square().mean() < 0.1


def patches(count):
    """Return images with two of four regions flat, and where the others are."""
    detailed = torch.rand(count, 4).argsort(1).view(count, 1, 2, 2) < 2
    enlarge = torch.nn.functional.interpolate
    flat = enlarge(0.3 + 0.6 * torch.rand(count, 1, 2, 2), scale_factor=8.0)
    detail = enlarge(1.6 * torch.rand(count, 1, 4, 4).round() - 0.8, scale_factor=4.0)
    images = torch.where(enlarge(detailed.float(), scale_factor=8.0) > 0, detail, flat)
    return images, detailed[:, 0]


# -- options and recipes ---


def test_without_a_budget_there_is_no_such_term(images):
    losses = small_tokenizer("dqvae", budget_weight=0.0)(images).losses
    assert set(losses) == {"reconstruction", "commitment"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 36}, InputError, "image_size 36 is not divisible by downsample_factor 8"),
        ({"attention_sizes": (5,)}, InputError, r"attention_sizes \[5\] .* are 32, 16, 8, 4"),
        ({"channel_multipliers": (1,)}, ConfigError, "channel_multipliers.* at least 2 items"),
        ({"fine_share": 1.5}, ConfigError, "fine_share.* less than or equal to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        spectok.load_tokenizer("dqvae", channels=4, **options)


@pytest.mark.parametrize(("data", "tokens"), [("cifar10", 20), ("celeba64", 80)])
def test_recipes_have_the_tokens_of_qgvaes_table(data, tokens):
    options = dict(load_tokenizer_recipe(f"dqvae/{data}").tokenizer)
    with torch.device("meta"):
        model = spectok.load_tokenizer(options.pop("name"), **options)
    assert model.token_spec.num_tokens == tokens
