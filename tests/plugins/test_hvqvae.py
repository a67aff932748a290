"""What is particular to HVQ-VAE: codes drawn by distance, and layers on the latents below."""

import copy
import math

import pytest
import torch

import spectok
from spectok.errors import InputError
from spectok.testing.learners import ImageLearner, fit, take_step, total
from spectok.testing.small import small_tokenizer


def make(**options):
    base = {"dim": 4, "num_tokens": 6, "codebook_size": 8}
    return spectok.create_quantizer("hqa", **(base | options)).train()


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return ImageLearner(small_tokenizer("hvqvae")).batch(8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return small_tokenizer("hvqvae")


# -- the quantizer ---


@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_the_latent_terms_are_the_expected_distance_and_the_divergence(num_codebooks):
    quantizer = make(num_codebooks=num_codebooks, commitment_weight=2.0, kl_weight=3.0)
    z = torch.randn(5, 6, 4)
    expected = divergence = 0.0
    for position in range(6):
        codes = quantizer.codebook.detach()[position * num_codebooks // 6]
        distances = (z[:, position, None] - codes).square().sum(-1).double()  # (B, K)
        q = torch.exp(-distances) / torch.exp(-distances).sum(-1, keepdim=True)
        expected += (q * distances).sum(-1).mean().item() / 6
        divergence += (math.log(8) + (q * q.log()).sum(-1).mean().item()) / 6
    losses = quantizer(z).losses
    assert losses["commitment"].item() == pytest.approx(2 * expected / 4, rel=1e-4)
    assert losses["kl"].item() == pytest.approx(3 * divergence / 4, rel=1e-4)


def test_the_expected_distance_moves_each_code_by_its_probability():
    """Also codes that are not the nearest; the nearest alone moves in VQ-VAE."""
    quantizer = make(num_tokens=1, commitment_weight=1.0, kl_weight=0.0, codebook_size=3)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.eye(4)[None, :3])
    z = torch.tensor([[[0.6, 0.4, 0.1, 0.0]]], requires_grad=True)
    quantizer(z).losses["commitment"].backward()
    assert (quantizer.codebook.grad[0].norm(dim=-1) > 1e-3).all()
    assert z.grad.norm() > 0


def test_temperature_falls_linearly():
    quantizer = make(initial_temperature=0.5, anneal_steps=4)
    found = []
    for _ in range(6):
        found.append(quantizer.temperature)
        quantizer.after_step()
    assert found == pytest.approx([0.5, 0.37525, 0.2505, 0.12575, 0.001, 0.001])


def test_the_least_used_code_moves_next_to_the_most_used():
    quantizer = make(reset_every=2, codebook_size=4)
    with torch.no_grad():
        quantizer.codebook.copy_(10 * torch.eye(4)[None])
    optimizer = torch.optim.Adam(quantizer.parameters())
    sum(quantizer(torch.randn(2, 6, 4)).losses.values()).backward()
    optimizer.step()
    quantizer.forget()
    before = quantizer.codebook.detach().clone()[0]
    chosen = torch.tensor([0] * 60 + [1] * 30 + [2] * 6).view(16, 6)  # code 3 is never chosen
    for step in range(2):
        quantizer(before[chosen])
        quantizer.after_step([optimizer])
        if step == 0:
            assert torch.equal(quantizer.codebook[0], before), "every second step only"
    after = quantizer.codebook.detach()[0]
    assert torch.equal(after[:3], before[:3])
    assert 0 < (after[3] - before[0]).norm() < 0.1
    assert (optimizer.state[quantizer.codebook]["exp_avg"][0, 3] == 0).all()
    assert quantizer.reset_counts.sum() == 0


def test_no_code_moves_while_all_are_used():
    quantizer = make(reset_every=1, codebook_size=4)
    before = quantizer.codebook.detach().clone()
    chosen = torch.arange(4).repeat(6).view(4, 6)
    quantizer(before[0][chosen])
    quantizer.after_step()
    assert torch.equal(quantizer.codebook, before)


# -- the layers ---


def test_tokens_are_those_of_the_top_layer(model, images):
    model.eval()
    sizes = [model.parts(layer)[1].shape for layer in (1, 2)]
    assert sizes == [(8, 8), (4, 4)]
    assert model.token_spec.num_tokens == 16
    latents = model.encoder[1](model.encoder[0](images))
    z = model.token_space.to_vectors(latents)
    assert torch.equal(model.encode(images), model.quantizer.encode(z).squeeze(-1))
    assert torch.equal(model.embed(model.encode(images)), model.quantizer(z).z_q)


def test_five_layers_make_one_token_of_an_image():
    model = spectok.load_tokenizer(
        "hvqvae", image_size=32, downsample_factor=32, num_layers=5, channels=8, codebook_dim=4
    ).eval()
    assert model.token_spec.num_tokens == 1
    assert [model.parts(layer)[1].shape[0] for layer in range(1, 6)] == [16, 8, 4, 2, 1]
    image = torch.rand(1, 3, 32, 32)
    assert model.decode(model.encode(image)).shape == image.shape


def test_decoding_goes_down_through_the_codes_of_every_layer(model, images):
    """Computed step by step, with the nearest code of each layer by its distance."""
    model.eval()
    indices = model.encode(images)
    with torch.no_grad():
        latents = model.decoder[0](model.token_space.to_latents(model.embed(indices)))
        _, space, quantizer, network = model.parts(1)
        z = space.to_vectors(latents)
        nearest = torch.cdist(z, quantizer.codebook[0]).argmin(-1)
        expected = network(space.to_latents(quantizer.codebook[0, nearest]))
        assert torch.allclose(model.decode(indices), expected, atol=1e-5)


def test_each_layer_reconstructs_the_latents_below(model, images):
    """The upper layer's term is the error of its decoder against z_1, which is not quantised."""
    made = {}
    model.decoder[0].register_forward_hook(lambda *args: made.update(decoded=args[2]))
    model.encoder[0].register_forward_hook(lambda *args: made.update(latents=args[2]))
    losses = model.train()(images).losses
    error = (made["decoded"] - made["latents"]).square().mean()
    assert losses["layer2_reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)
    assert set(losses) == {
        "reconstruction",
        "layer1_commitment",
        "layer1_kl",
        "layer2_reconstruction",
        "layer2_commitment",
        "layer2_kl",
    }


def test_no_target_is_made_easier(model, images):
    """Of the upper layer's error no gradient reaches the lower layer's codes and decoder."""
    model.train()(images).losses["layer2_reconstruction"].backward()
    assert all(p.grad is None for p in model.decoder[1].parameters())
    assert all(p.grad is not None for p in model.decoder[0].parameters())


def test_latent_terms_are_weighted_by_entries_per_input(model, images):
    """Layer 1 has 8·8·8 entries for 16·16 pixels, layer 2 has 4·4·8 for 8·8·8."""
    for share, layer in ((2.0, 1), (0.25, 2)):
        _, space, quantizer, _ = model.parts(layer)
        torch.manual_seed(0)
        z = torch.randn(8, space.num_tokens, 8)
        quantized = quantizer.train()(z)
        target = torch.zeros(8, 1, 16, 16) if layer == 1 else torch.zeros(8, 8, 8, 8)
        terms = model.layer_losses(layer, target, target, quantized)
        expected = share * quantized.losses["kl"].item()
        assert terms[f"layer{layer}_kl"].item() == pytest.approx(expected, rel=1e-5)


def test_layers_draw_different_noise(model):
    model.train().share_seeds(4)
    first, second = (model.parts(layer)[2].given_seeds for layer in (1, 2))
    assert len(set(first) | set(second)) == 8


@pytest.mark.parametrize("layer", [1, 2])
def test_only_one_layer_learns(images, layer):
    torch.manual_seed(0)
    learner = ImageLearner(small_tokenizer("hvqvae", only_layer=layer)).train()
    model = learner.model
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        take_step(learner, [images], optimizer, step)
    prefixes = {1: ("encoder.0.", "decoder.1."), 2: ("encoder.1.", "decoder.0.", "quantizer.")}
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert all(name.startswith(prefixes[layer]) for name in moved), moved
    names = set(model.train()(images).losses)
    assert all(("layer2" in name) == (layer == 2) for name in names), names


def test_layer_by_layer_each_one_improves(images):
    """As the paper trains: the lower layer first, then the upper on its fixed latents."""
    torch.manual_seed(0)
    state = small_tokenizer("hvqvae").state_dict()
    errors = []
    for layer in (1, 2):
        model = small_tokenizer("hvqvae", only_layer=layer)
        model.load_state_dict(state)
        term = "reconstruction" if layer == 1 else "layer2_reconstruction"
        learner = ImageLearner(model).train()
        first = learner(images).losses[term].item()
        before, after = fit(learner, images, steps=40, learning_rate=5e-3)
        errors.append(after / before)
        assert learner.train()(images).losses[term].item() < 0.7 * first
        state = model.state_dict()
    assert errors[1] < 0.8, "once the upper layer has learned, its tokens show the images"


def test_other_quantizers_keep_their_own_weights(images):
    model = small_tokenizer("hvqvae", quantizer="vq").train()
    assert total(model(images).losses).isfinite()
    z = torch.randn(8, 64, 8)
    quantized = model.parts(1)[2](z)
    target = torch.zeros(8, 1, 16, 16)
    terms = model.layer_losses(1, target, target, quantized)
    assert terms["layer1_commitment"].item() == quantized.losses["commitment"].item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 4}, "num_layers 4 does not fit downsample_factor 4.*at most 3 layers"),
        ({"only_layer": 3}, "only_layer 3 is not one of the 2 layers"),
        ({"image_size": 18}, "image_size 18 is not divisible by downsample_factor 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        spectok.load_tokenizer("hvqvae", **options)
