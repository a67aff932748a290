"""What is particular to VQ-VAE's two quantizers: gradient codes, running means, revival."""

import pytest
import torch

import spectok
from spectok.errors import InputError
from spectok.testing.small import small_tokenizer


def make(name, **options):
    base = {"dim": 3, "num_tokens": 4, "codebook_size": 6}
    return spectok.create_quantizer(name, **(base | options)).train()


def test_gradient_codes_move_to_their_vectors_and_unused_ones_stay():
    quantizer = make("vq", num_tokens=1, codebook_size=2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[[0.0, 0, 0], [9.0, 9, 9]]]))
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    for _ in range(50):
        loss = quantizer(torch.full((4, 1, 3), 0.7)).losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(quantizer.codebook[0, 0], torch.tensor(0.7), atol=1e-3)
    assert torch.equal(quantizer.codebook[0, 1], torch.full((3,), 9.0))


def test_commitment_moves_the_encoder_and_codebook_loss_the_codes():
    quantizer, z = make("vq"), torch.randn(2, 4, 3, requires_grad=True)
    losses = quantizer(z).losses
    (to_encoder,) = torch.autograd.grad(losses["commitment"], z)
    assert to_encoder.abs().sum() > 0
    assert torch.autograd.grad(losses["codebook"], z, allow_unused=True) == (None,)
    assert torch.autograd.grad(
        quantizer(z).losses["commitment"], quantizer.codebook, allow_unused=True
    ) == (None,)


def test_ema_codes_become_the_running_means_of_their_members():
    quantizer = make("ema", num_tokens=1, codebook_size=2, decay=0.5, revive_below=0.0)
    sums, counts = torch.zeros(2, 3), torch.zeros(2)
    torch.manual_seed(0)
    for i in range(5):
        z = torch.randn(16, 1, 3)
        chosen = quantizer(z).indices.flatten()
        quantizer.after_step()
        assert i > 0 or len(chosen.unique()) == 2  # otherwise the first step revives a code
        for k in range(2):
            sums[k] = 0.5 * sums[k] + 0.5 * z[chosen == k].sum((0, 1))
            counts[k] = 0.5 * counts[k] + 0.5 * (chosen == k).sum()
    assert torch.allclose(quantizer.codebook[0], sums / counts[:, None], atol=1e-5)


def test_accumulated_micro_batches_equal_one_big_step():
    torch.manual_seed(0)
    z = torch.randn(8, 4, 3)
    one, two = make("ema", codebook_size=24), make("ema", codebook_size=24)
    two.load_state_dict(one.state_dict())
    one(z)
    two(z[:4])
    two(z[4:])
    one.after_step()
    two.after_step()
    # the first step also revives the unused codes, from the vectors of all micro-batches
    state = two.state_dict()
    for name, value in one.state_dict().items():
        assert torch.allclose(state[name], value, atol=1e-6), name


def test_the_first_step_starts_the_codebook_on_the_data():
    quantizer = make("ema", num_tokens=1, codebook_size=32)
    z = torch.randn(64, 1, 3) * 0.01 + 5
    quantizer(z)
    quantizer.after_step()
    assert torch.cdist(quantizer.codebook[0], z[:, 0]).amin(1).max() < 0.1
    assert len(quantizer.encode(z).unique()) > 8


def test_a_revived_code_survives_ten_updates():
    torch.manual_seed(0)
    quantizer = make("ema", num_tokens=1, codebook_size=4, revive_every=5)
    data = torch.randn(64, 1, 3)
    quantizer(data)
    quantizer.after_step()
    with torch.no_grad():  # a code far from the data, long unused
        quantizer.codebook[0, 2] = 100.0
        quantizer.ema_sums[0, 2] = 0.0
        quantizer.ema_counts[0, 2] = 0.0
        quantizer.frequency[0, 2] = 0.0
    for _ in range(5):
        quantizer(data)
        quantizer.after_step()
    for _ in range(10):
        quantizer(data)
        quantizer.after_step()
    assert quantizer.codebook[0, 2].abs().max() < 5
    assert (quantizer.encode(data) == 2).any()


def test_a_revived_code_is_its_own_running_mean():
    quantizer = make("ema", num_codebooks=2)
    quantizer(torch.randn(16, 4, 3))
    quantizer.after_step()
    counts, sums = quantizer.ema_counts.clone(), quantizer.ema_sums.clone()
    quantizer.set_codes(1, torch.tensor([2]), torch.full((1, 3), 7.0))
    mean = quantizer.ema_sums[1, 2] / quantizer.ema_counts[1, 2]
    assert torch.allclose(mean, torch.tensor(7.0))
    assert torch.allclose(quantizer.ema_counts[1, 2], counts[1].mean())
    assert torch.equal(quantizer.ema_sums[0], sums[0])


def test_revival_can_be_turned_off():
    quantizer = make("ema", num_tokens=1, codebook_size=4, revive_below=0.0, revive_every=1)
    quantizer(torch.randn(16, 1, 3))
    quantizer.after_step()
    with torch.no_grad():
        quantizer.codebook[0, 2] = 100.0
        quantizer.ema_counts[0, 2] = 0.0
    for _ in range(20):
        quantizer(torch.randn(16, 1, 3))
        quantizer.after_step()
    assert (quantizer.codebook[0, 2] == 100).all()


def test_usage_is_the_share_of_codes_above_a_tenth_of_uniform():
    quantizer = make("vq", num_tokens=1, codebook_size=4)
    quantizer.frequency.copy_(torch.tensor([[0.5, 0.45, 0.05, 0.0]]))
    metrics = quantizer.usage()
    assert metrics["codebook_usage"].item() == pytest.approx(0.75)
    entropy = -(0.5 * torch.tensor(0.5).log() + 0.45 * torch.tensor(0.45).log())
    entropy -= 0.05 * torch.tensor(0.05).log()
    assert metrics["perplexity"].item() == pytest.approx(entropy.exp().item(), rel=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_vqvae_has_one_token_per_factor_squared_pixels(factor):
    model = spectok.load_tokenizer(
        "vqvae", image_size=16, downsample_factor=factor, channels=8, codebook_dim=4, num_blocks=1
    )
    assert model.token_spec.levels[0].shape == (16 // factor, 16 // factor)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert model(images).reconstruction.shape == images.shape


@pytest.mark.parametrize(
    "key", ["vqvae", "vqvae2", "cvqvae", "vqgan", "rqvae", "hqvae", "hrvqvae", "favae"]
)
def test_an_option_chooses_between_absolute_and_squared_errors(key):
    images, other = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.5)
    for name, value in [("l1", 0.5), ("l2", 0.25)]:
        model = small_tokenizer(key, reconstruction_loss=name)
        assert model.reconstruction_losses(images, other)["reconstruction"].item() == value


def test_a_tokenizer_without_that_option_has_squared_errors():
    images, other = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.5)
    terms = small_tokenizer("fqvae").reconstruction_losses(images, other)
    assert {name: term.item() for name, term in terms.items()} == {"reconstruction": 0.25}


@pytest.mark.parametrize("name", ["vq", "ema"])
def test_an_empty_codebook_is_refused(name):
    with pytest.raises(InputError, match="codebook_size 0 must be at least 1"):
        make(name, codebook_size=0)
