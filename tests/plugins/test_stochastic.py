"""What is particular to codes that are chosen at random: SQ-VAE and Gumbel-softmax."""

import math

import pytest
import torch

import spectok
from spectok.testing.learners import ImageLearner, fit
from spectok.testing.small import small_tokenizer
from spectok_stochastic import relaxation


def make(name, **options):
    base = {"dim": 4, "num_tokens": 6, "codebook_size": 8}
    return spectok.create_quantizer(name, **(base | options)).train()


def far_along(quantizer, steps):
    """Pretend that training has taken so many steps."""
    quantizer.num_steps.fill_(steps)
    quantizer.load_state_dict(quantizer.state_dict())  # as loading a trained one would
    return quantizer


# -- both ---


@pytest.mark.parametrize("name", ["sq", "gumbel", "hqa"])
def test_training_mixes_codes_and_eval_takes_one(name):
    quantizer, z = make(name), torch.randn(3, 6, 4)
    mixed = quantizer(z).z_q
    codes = quantizer.codebook[0]
    distance = torch.cdist(mixed, codes).amin(-1)
    assert distance.min() > 1e-3, "no vector should be exactly a code at temperature 1"
    assert torch.cdist(quantizer.eval()(z).z_q, codes).amin(-1).max() < 1e-3


@pytest.mark.parametrize("name", ["sq", "gumbel", "hqa"])
def test_an_images_noise_is_its_own(name):
    quantizer, z = make(name), torch.randn(4, 6, 4)
    torch.manual_seed(3)
    together = quantizer(z).z_q
    torch.manual_seed(3)
    halves = [quantizer(half).z_q for half in z.chunk(2)]
    assert torch.allclose(together, torch.cat(halves), atol=1e-6)
    assert not torch.allclose(quantizer(z).z_q, together, atol=1e-3), "noise is drawn anew"
    same = quantizer(z[:1].expand(2, -1, -1)).z_q
    assert not torch.allclose(same[0], same[1], atol=1e-3), "each image has its own noise"


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("name", ["sq", "gumbel", "hqa"])
def test_blocks_change_nothing(name, num_codebooks, monkeypatch):
    results = []
    for images_at_once in (4, 1):
        monkeypatch.setitem(relaxation.BLOCK_BYTES, "cpu", images_at_once * 4 * 6 * 8)
        torch.manual_seed(0)
        quantizer = make(name, num_codebooks=num_codebooks)
        z = torch.randn(4, 6, 4, requires_grad=True)
        output = quantizer(z)
        (sum(output.losses.values()) + output.z_q.square().sum()).backward()
        gradients = [p.grad for p in quantizer.parameters()]
        results.append([output.z_q, output.indices, z.grad, *gradients])
    for whole, parts in zip(*results):
        assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("name", ["sq", "gumbel", "hqa"])
def test_codes_are_drawn_with_their_probabilities(name):
    quantizer = make(name, num_tokens=1, codebook_size=4)
    z = torch.randn(1, 1, 4)
    with torch.no_grad():
        log_q = quantizer.scores(z).log_softmax(-1)[0, 0]
        noise = relaxation.gumbel_noise(range(5000), (1, 4), z.device)
    drawn = torch.bincount((log_q + noise).argmax(-1).flatten(), minlength=4) / 5000
    assert torch.allclose(drawn, log_q.exp(), atol=0.03)


def test_training_mixes_codes_as_the_formula_says():
    """z_q = Σ_k softmax((log q + g) / τ)_k e_k, each position with its own codebook and noise."""
    quantizer = far_along(make("gumbel", anneal_steps=100, num_codebooks=2), 50)
    z, seeds = torch.randn(2, 6, 4), [3, 4]
    mixed, *_ = quantizer.relax(z, seeds)
    noise = relaxation.gumbel_noise(seeds, (6, 8), z.device)
    assert 0.1 < quantizer.temperature < 0.9
    for position in range(6):
        group = position // 3
        logits = z[:, position] @ quantizer.to_logits[group].T + quantizer.bias[group]
        log_q = logits.log_softmax(-1)
        weights = ((log_q + noise[:, position]) / quantizer.temperature).softmax(-1)
        assert torch.allclose(mixed[:, position], weights @ quantizer.codebook[group], atol=1e-5)


# -- SQ-VAE ---


def test_as_variance_and_temperature_vanish_the_draw_becomes_the_nearest_code():
    quantizer, z = make("sq", initial_variance=1e-4), torch.randn(16, 6, 4)
    nearest = quantizer.lookup(quantizer.encode(z))
    far_along(quantizer, 600_000)  # temperature 0.0025
    apart = (quantizer(z).z_q - nearest).norm(dim=-1)
    assert (apart < 1e-3).float().mean() > 0.98
    loose = far_along(make("sq", initial_variance=10.0), 600_000)
    loose.load_state_dict(quantizer.state_dict() | {"variance.value": torch.tensor(2.3)})
    assert ((loose(z).z_q - nearest).norm(dim=-1) < 1e-3).float().mean() < 0.5


def test_the_two_latent_terms_are_those_of_the_bound():
    quantizer = make("sq", initial_variance=0.7, latent_weight=1.0)
    z = torch.randn(5, 6, 4)
    output = quantizer.eval()(z)
    distances = torch.cdist(z, quantizer.codebook[0]).square()
    q = torch.softmax(-distances / (2 * 0.7), dim=-1)
    entropy = -(q * q.log()).sum(-1).mean()
    assert output.losses["entropy"].item() == pytest.approx(-entropy.item() / 4, rel=1e-4)
    nearest = distances.amin(-1).mean().item()
    assert output.losses["distance"].item() == pytest.approx(nearest / (2 * 0.7 * 4), rel=1e-4)


def test_temperature_falls_exponentially():
    quantizer = make("sq", temperature_decay=1e-3)
    assert quantizer.temperature == 1
    assert far_along(quantizer, 2000).temperature == pytest.approx(math.exp(-2))
    assert far_along(quantizer, 10**7).temperature > 0


def test_self_annealing_variance_and_entropy_fall_as_the_decoder_gets_better():
    model = small_tokenizer("sqvae")
    learner = ImageLearner(model)
    images = learner.batch(8)
    records = []
    for _ in range(3):
        fit(learner, images, steps=25, learning_rate=1e-2)
        output = model.train()(images)
        records.append((output.metrics["variance"].item(), -output.losses["entropy"].item()))
    variances, entropies = zip(*records)
    assert variances[0] > variances[1] > variances[2]
    assert entropies[0] > entropies[2]


def test_the_reconstruction_term_is_smallest_where_the_variance_is_the_error():
    model = small_tokenizer("sqvae")
    images = torch.zeros(2, *model.image_shape)
    other = images + 0.3
    losses = []
    for variance in (0.08, 0.09, 0.1):
        torch.nn.init.constant_(model.variance.value, math.log(variance))
        losses.append(model.reconstruction_losses(images, other)["reconstruction"].item())
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]
    share = math.prod(model.image_shape) / (16 * 8)
    expected = 0.5 * share * (1 + math.log(0.09))
    assert losses[1] == pytest.approx(0.02 * expected, rel=1e-5)


def test_the_weight_of_the_latent_terms_scales_the_whole_bound():
    totals = []
    for weight in (0.02, 0.5):
        torch.manual_seed(0)
        model = small_tokenizer("sqvae", quantizer={"name": "sq", "latent_weight": weight})
        losses = model(torch.rand(2, *model.image_shape)).losses
        totals.append({name: value.item() / weight for name, value in losses.items()})
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)


# -- Gumbel-softmax ---


def test_kl_is_zero_for_uniform_codes_and_log_k_for_certain_ones():
    quantizer, z = make("gumbel", kl_weight=2.0, kl_warmup_steps=0), torch.randn(3, 6, 4)
    torch.nn.init.zeros_(quantizer.to_logits)
    assert quantizer(z).losses["kl"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        quantizer.bias[..., 3] = 100
    assert quantizer(z).losses["kl"].item() == pytest.approx(2 * math.log(8), rel=1e-5)


def test_eval_takes_the_largest_logit():
    quantizer, z = make("gumbel").eval(), torch.randn(3, 6, 4)
    logits = z @ quantizer.to_logits[0].T + quantizer.bias[0]
    assert torch.equal(quantizer(z).indices.squeeze(-1), logits.argmax(-1))


def test_schedules_run_along_half_a_cosine():
    quantizer = make("gumbel", anneal_steps=100, kl_warmup_steps=10, kl_weight=1.0)
    z = torch.randn(3, 6, 4)
    assert quantizer.temperature == 1
    assert quantizer(z).losses["kl"].item() == 0
    assert far_along(quantizer, 50).temperature == pytest.approx((1 + 1 / 16) / 2)
    assert quantizer(z).losses["kl"].item() > 0
    assert far_along(quantizer, 100).temperature == pytest.approx(1 / 16)
    quantizer.after_step()
    assert quantizer.step_counter.steps == 101
