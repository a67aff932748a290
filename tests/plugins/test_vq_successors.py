"""What is particular to VQ-VAE-2, CVQ-VAE and VQGAN."""

import copy
import itertools

import pytest
import torch

import spectok
from spectok.errors import InputError
from spectok.testing import TokenizerConformance
from spectok.testing.learners import ImageLearner, fit
from spectok.testing.small import small_tokenizer
from spectok.training.adversarial import Adversary
from spectok.training.objective import Objective
from spectok.training.recipe import load_tokenizer_recipe


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return ImageLearner(small_tokenizer("vqvae")).batch(8)


# -- VQ-VAE-2 ---


@pytest.fixture(scope="module")
def grids(images):
    """Return a small VQ-VAE-2 that has learned something, so that its two grids differ."""
    torch.manual_seed(0)
    model = small_tokenizer("vqvae2", codebook_size=16, top_codebook_size=8)
    fit(ImageLearner(model), images, steps=30, learning_rate=5e-3)
    return model.eval()


def test_vqvae2_has_a_coarse_grid_before_a_fine_one_of_four_times_the_tokens(grids):
    coarse, fine = grids.token_spec.levels
    assert (coarse.shape, coarse.vocab_size) == ((2, 2), 8)
    assert (fine.shape, fine.vocab_size) == ((4, 4), 16)
    assert grids.token_spec.order == "level"
    assert grids.token_spec.bits_per_image == 4 * 3 + 16 * 4


def test_what_the_fine_grid_quantises_depends_on_the_codes_of_the_coarse_one(grids, images):
    latents = grids.encode_latents(images[:1])
    indices = torch.zeros(1, 4, 1, dtype=torch.int64)
    space = grids.token_space
    bottoms = [
        space.to_vectors(1, latents, space.stack(0, grids.top_quantizer.lookup(indices + i), None))
        for i in range(2)
    ]
    moved = (bottoms[0] - bottoms[1]).norm() / bottoms[0].norm()
    assert moved > 1e-3, "the fine grid is not conditioned on the coarse one"


def test_the_coarse_grid_is_chosen_without_the_fine_one(grids, images):
    before, other = grids.encode(images), copy.deepcopy(grids)
    other.quantizer.codebook.normal_()
    after = other.encode(images)
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.equal(after[:, 4:], before[:, 4:])


def test_the_decoder_sees_both_grids(grids, images):
    indices = grids.encode(images[:1])
    whole = grids.decode(indices)
    for place, size in ((0, 8), (4, 16)):  # a token of each grid
        other = indices.clone()
        other[:, place] = (other[:, place] + 1) % size
        assert (grids.decode(other) - whole).abs().max() > 1e-3


def test_a_coarse_token_reaches_farther_than_a_fine_one():
    model = spectok.load_tokenizer(
        "vqvae2", image_size=64, codebook_dim=8, channels=8, num_blocks=0, residual_channels=4
    ).eval()
    indices = torch.zeros(1, model.token_spec.num_tokens, dtype=torch.int64)
    reached = []
    for level in range(2):
        other, start = indices.clone(), 0 if level == 0 else 64
        side = (8, 16)[level]
        other[:, start + side * side // 2 + side // 2] = 1  # in the middle
        changed = (model.decode(other) - model.decode(indices)).abs().sum(1) > 1e-7
        reached.append(int(changed.sum()))
    assert reached[0] > 2 * reached[1]


def test_each_grid_reports_its_own_codebook(grids, images):
    output = grids(images)
    for grid in ("top", "bottom"):
        assert f"{grid}_commitment" in output.losses
        assert output.metrics[f"{grid}_perplexity"] >= 1


def test_a_tree_of_codebooks_fits_each_grid(images):
    model = small_tokenizer("vqvae2", quantizer="tree").eval()
    shapes = [level.shape for level in model.token_spec.levels]
    assert shapes == [(2, 2)] * 3 + [(4, 4)] * 3
    indices = model.encode(images)
    assert torch.equal(model.decode(indices), model(images).reconstruction)


def test_vqvae2_refuses_what_does_not_fit(grids, images):
    with pytest.raises(InputError, match="image_size 20 is not divisible by downsample_factor 8"):
        spectok.load_tokenizer("vqvae2", image_size=20, downsample_factor=4)
    with pytest.raises(InputError, match="num_tokens 4 does not decode on its own"):
        grids.decode(grids.encode(images), num_tokens=4)


THREE = {"downsample_factor": 2, "num_grids": 3, "codebook_size": 16, "top_codebook_size": 8}


class TestThreeGrids(TokenizerConformance):
    @pytest.fixture
    def build(self):
        return lambda: small_tokenizer("vqvae2", **THREE)


@pytest.fixture(scope="module")
def three_grids(images):
    """Return a small VQ-VAE-2 of three grids that has learned something."""
    torch.manual_seed(0)
    model = small_tokenizer("vqvae2", **THREE)
    fit(ImageLearner(model), images, steps=30, learning_rate=5e-3)
    return model.eval()


def test_three_grids_come_coarse_to_fine(three_grids, images):
    levels = three_grids.token_spec.levels
    assert [level.shape for level in levels] == [(2, 2), (4, 4), (8, 8)]
    assert [level.vocab_size for level in levels] == [8, 16, 16]
    assert [table.shape[1] for table in three_grids.code_tables] == [8, 16, 16]
    output = three_grids(images)
    for grid in ("top", "middle", "bottom"):
        assert f"{grid}_commitment" in output.losses
        assert output.metrics[f"{grid}_perplexity"] >= 1


def test_each_grid_is_chosen_from_those_above_it_alone(three_grids, images):
    ends, before = [0, 4, 20, 84], three_grids.encode(images)
    for grid, name in enumerate(["top_quantizer", "middle_quantizers.0", "quantizer"]):
        other = copy.deepcopy(three_grids)
        other.get_submodule(name).codebook.normal_()
        after = other.encode(images)
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            same = torch.equal(after[:, start:end], before[:, start:end])
            assert same == (number < grid), (grid, number)


def test_three_grids_are_what_their_layers_compute(three_grids, images):
    """Algorithm 1, written out for three grids."""
    space, shape = three_grids.token_space, lambda z, side: z.mT.unflatten(2, (side, side))
    middle = space.coarser[0]
    with torch.no_grad():
        latents = three_grids.encoder(images)
        halves = space.to_top(latents)
        top = shape(three_grids.top_quantizer(vectors(middle.to_top(halves))).z_q, 2)
        z_middle = middle.to_bottom(torch.cat([middle.from_top(top), halves], 1))
        codes = shape(three_grids.middle_quantizers[0](vectors(z_middle)).z_q, 4)
        above = torch.cat([middle.upsample(top), codes], 1)
        z_bottom = space.to_bottom(torch.cat([space.from_top(above), latents], 1))
        codes = shape(three_grids.quantizer(vectors(z_bottom)).z_q, 8)
        expected = three_grids.decoder(torch.cat([space.upsample(above), codes], 1))
        found = three_grids.decode(three_grids.encode(images))
    torch.testing.assert_close(found, expected)


def vectors(latents):
    return latents.flatten(2).mT


def test_five_grids_begin_with_one_token():
    model = small_tokenizer("vqvae2", downsample_factor=1, num_grids=5)
    assert [level.num_tokens for level in model.token_spec.levels] == [1, 4, 16, 64, 256]
    assert model.grid_names == ["top", "middle1", "middle2", "middle3", "bottom"]


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="image_size 48 is not divisible by downsample_factor 32"):
        spectok.load_tokenizer("vqvae2", image_size=48, num_grids=4)


@pytest.mark.parametrize("data", ["ffhq256", "imagenet128", "cifar10", "mnist"])
def test_three_grids_end_at_the_latents_of_hrvqvae(data):
    size = {"ffhq256": 32, "imagenet128": 32}.get(data, 16)
    name = f"vqvae2/{data}" if size == 32 else f"vqvae2/{data}_three"
    options = dict(load_tokenizer_recipe(name).tokenizer)
    with torch.device("meta"):
        model = spectok.load_tokenizer(options.pop("name"), **options)
    shapes = [level.shape for level in model.token_spec.levels]
    assert shapes == [(size // 4, size // 4), (size // 2, size // 2), (size, size)]


# -- CVQ-VAE ---


def test_cvqvae_brings_codes_to_the_data_where_plain_codes_stay_away(images):
    used = {}
    for key, options in (("vqvae", {"quantizer": "vq"}), ("cvqvae", {})):
        torch.manual_seed(0)
        model = small_tokenizer(key, **options)
        with torch.no_grad():
            model.quantizer.codebook.add_(2.0)  # far from every vector
        fit(ImageLearner(model), images, steps=8, learning_rate=1e-3)
        used[key] = len(model.eval().encode(images).unique())
    assert used["cvqvae"] >= 4 * used["vqvae"], used


def test_cvqvae_is_vqvae_but_for_its_codebook():
    cvqvae, vqvae = spectok.load_tokenizer("cvqvae"), spectok.load_tokenizer("vqvae")
    networks = [
        {n: p.shape for n, p in model.named_parameters() if not n.startswith("quantizer")}
        for model in (cvqvae, vqvae)
    ]
    assert networks[0] == networks[1]
    assert type(cvqvae.quantizer) is type(
        spectok.create_quantizer("cvq", dim=4, num_tokens=4, codebook_size=4)
    )


# -- VQGAN ---


def test_vqgan_has_the_papers_sizes_at_256_pixels():
    with torch.device("meta"):
        model = spectok.load_tokenizer(
            "vqgan",
            image_size=256,
            channel_multipliers=(1, 1, 2, 2, 4),
            attention_sizes=(16,),
            codebook_dim=256,
        )
    assert model.token_spec.levels[0].shape == (16, 16)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert sizes == [29_363_968, 42_515_587]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size 30 is not divisible by downsample_factor 4"),
        ({"attention_sizes": (5,)}, r"attention_sizes \[5\] .* are 32, 16, 8"),
    ],
)
def test_vqgan_refuses_sizes_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        spectok.load_tokenizer("vqgan", channels=4, **options)


def test_vqgan_recipes_train_against_patchgan_beside_lpips():
    for name in ("imagenet256", "ffhq256"):
        recipe = load_tokenizer_recipe(f"vqgan/{name}")
        assert recipe.adversarial.discriminator["name"] == "patchgan"
        assert recipe.adversarial.adaptive
        assert recipe.losses.perceptual.network == "vgg"


def test_vqgan_balances_pixels_with_the_discriminator(images):
    model, recipe = small_tokenizer("vqgan"), load_tokenizer_recipe("smoke/vqgan")
    objective = Objective(model, adversary=Adversary(recipe.adversarial, model, 1, seed=0))
    objective.begin_step(recipe.adversarial.start_step)
    result = objective(model, {"images": images})
    assert 0 < result.metrics["adaptive_weight"] < 1e4
    assert set(result.losses) == {"reconstruction", "codebook", "commitment", "generator"}
