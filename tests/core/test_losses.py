"""Losses and discriminators: their values, their gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectok import list_tokenizers  # noqa: F401 - plugins load before shapes are checked
from spectok.errors import CheckpointError, InputError
from spectok.losses import (
    LPIPS,
    adaptive_weight,
    focal_frequency,
    hinge_discriminator,
    hinge_generator,
    l1,
    l2,
)
from spectok.nn.discriminators import PatchGAN
from spectok.nn.stylegan import StyleGAN2Discriminator, activate, group_deviation, halve
from spectok.plugins.registry import get_registered, list_registered

# -- pixels and spectra ----------------------------------------------------------------------------


def test_pixel_distances_are_means(checked_shapes):
    images, reconstruction = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    reconstruction[0, 0, 0, 0] = -2.0
    assert float(l1(reconstruction, images)) == pytest.approx(2 / 96)
    assert float(l2(reconstruction, images)) == pytest.approx(4 / 96)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_focal_frequency_is_that_of_its_authors(alpha, size, checked_shapes):
    package = pytest.importorskip("focal_frequency_loss", reason="the authors' package is absent")
    target = torch.randn(3, 2, *size)
    ours, theirs = (torch.randn(3, 2, *size).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    loss = focal_frequency(ours, target, alpha)
    expected = package.FocalFrequencyLoss(alpha=alpha)(theirs, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for each in (loss, expected):
        each.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)


def test_focal_frequency_of_equal_images_is_zero_and_so_is_its_gradient():
    images = torch.randn(2, 1, 8, 8)
    reconstruction = images.clone().requires_grad_()
    loss = focal_frequency(reconstruction, images)
    loss.backward()
    assert loss.item() == 0
    assert reconstruction.grad.count_nonzero() == 0


def test_focal_frequency_looks_hardest_at_what_is_far_off():
    x = torch.arange(16) * 2 * torch.pi / 16
    low, high = x.cos().expand(1, 1, 16, 16), (7 * x).cos().expand(1, 1, 16, 16)
    even = focal_frequency(low + high, torch.zeros(1, 1, 16, 16))
    uneven = focal_frequency(2**0.5 * low + 1e-3 * high, torch.zeros(1, 1, 16, 16))
    assert torch.isclose(even, uneven, rtol=1e-4), "of equal energy, each line at full weight"
    mixed = focal_frequency(1.2 * low + 0.6 * high, torch.zeros(1, 1, 16, 16))
    assert mixed < 0.99 * l2(1.2 * low + 0.6 * high, torch.zeros(1, 1, 16, 16))
    flat = focal_frequency(1.2 * low + 0.6 * high, torch.zeros(1, 1, 16, 16), alpha=0)
    assert torch.isclose(flat, l2(1.2 * low + 0.6 * high, torch.zeros(1, 1, 16, 16)))  # Parseval


def test_losses_are_float32_under_autocast():
    a, b = torch.randn(2, 2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        values = [function(a, b) for function in (l1, l2, focal_frequency)]
    assert values == [function(a, b) for function in (l1, l2, focal_frequency)]


# -- a discriminator's losses ----------------------------------------------------------------------


def test_hinge_losses(checked_shapes):
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert float(hinge_discriminator(real, fake)) == 0.5 * (0.5 + 1.0)
    assert float(hinge_generator(fake)) == 1.0


def test_adaptive_weight_equals_lengths(checked_shapes):
    reference, generator = torch.randn(4, 3, 3, 3), 50 * torch.randn(4, 3, 3, 3)
    weight = adaptive_weight(reference, generator, 1e-6)
    assert isinstance(weight, torch.Tensor)
    assert torch.isclose((weight * generator).norm(), reference.norm())


def test_adaptive_weight_adds_epsilon_to_the_length_that_divides():
    weight = adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), epsilon=0.5)
    assert float(weight) == 5 / (2 + 0.5)


def test_adaptive_weight_has_a_limit_and_no_gradient():
    reference = torch.ones(3, requires_grad=True)
    weight = adaptive_weight(reference, torch.zeros(3), 1e-6)
    assert float(weight) == 1e4
    assert not weight.requires_grad
    assert float(adaptive_weight(torch.zeros(3), torch.ones(3))) == 0


# -- discriminators --------------------------------------------------------------------------------


def test_patchgan_is_that_of_vqgan(checked_shapes):
    network = PatchGAN(image_shape=(3, 64, 64), norm="batch")
    weights = sum(p.numel() for p in network.parameters())
    convolutions = 3 * 64 * 16 + 64 + 16 * (64 * 128 + 128 * 256 + 256 * 512) + 512 * 16 + 1
    assert weights == convolutions + 2 * (128 + 256 + 512)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    layers = [m for m in network if isinstance(m, nn.Conv2d)]
    assert [layer.stride[0] for layer in layers] == [2, 2, 2, 1, 1]
    assert all(abs(m.weight.std().item() - 0.02) < 1e-3 for m in layers)
    assert not list(network.buffers()), "statistics of one rank are not those of another"


def test_patchgan_in_groups_looks_at_each_image_by_itself():
    images = torch.randn(4, 1, 24, 24)
    network = PatchGAN(image_shape=(1, 24, 24), channels=8)
    assert torch.allclose(network(images)[:2], network(images[:2]), atol=1e-6)
    network = PatchGAN(image_shape=(1, 24, 24), channels=8, norm="batch")
    assert not torch.allclose(network(images)[:2], network(images[:2]), atol=1e-4)


def test_patchgan_says_how_large_images_must_be():
    with pytest.raises(InputError, match=r"16×16 pixels are too small for a PatchGAN .* takes 24"):
        PatchGAN(image_shape=(1, 16, 16))
    for layers in (1, 2, 3):
        size = 3 * 2**layers
        network = PatchGAN(image_shape=(1, size, size), num_layers=layers, channels=4)
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("name", list_registered("discriminator"))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_discriminator_keeps_the_contract(name, channels, checked_shapes):
    network = get_registered("discriminator", name)(image_shape=(channels, 32, 32))
    images = (torch.rand(2, channels, 32, 32) * 2 - 1).requires_grad_()
    logits = network(images)
    assert logits.isfinite().all()
    (logits.square().mean() - logits.mean()).backward()
    assert images.grad.abs().amax((1, 2, 3)).gt(0).all()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_stylegan2_looks_at_whole_images_and_at_groups_if_asked():
    images = torch.randn(4, 3, 16, 16)
    network = StyleGAN2Discriminator(image_shape=(3, 16, 16), channels=8)
    logits = network(images)
    assert logits.shape == (4, 1)
    assert torch.allclose(logits[:2], network(images[:2]), atol=1e-5)
    grouped = StyleGAN2Discriminator(image_shape=(3, 16, 16), channels=8, group_size=4)
    assert not torch.allclose(grouped(images)[:2], grouped(images[:2]), atol=1e-4)
    alike = images[:1].expand(4, -1, -1, -1)
    assert torch.allclose(group_deviation(alike, 4), torch.tensor(1e-4), atol=1e-6)


def test_stylegan2_starts_with_maps_of_one_scale():
    """Equalised weights and the gain of the activation keep the variance of white noise."""
    network = StyleGAN2Discriminator(image_shape=(3, 64, 64), channels=64)
    x = activate(network.from_image(torch.randn(8, 3, 64, 64)))
    for block in network.blocks:
        x = block(x)
        assert 0.2 < x.square().mean() < 3
    smooth = halve(torch.ones(1, 2, 8, 8))
    assert torch.allclose(smooth[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize("size", [(12, 12), (16, 32), (2, 2)])
def test_stylegan2_says_which_images_fit(size):
    with pytest.raises(InputError, match="which takes squares of 4, 8, 16, 32"):
        StyleGAN2Discriminator(image_shape=(1, *size))


def test_pixel_unet_has_a_logit_per_pixel():
    network = get_registered("discriminator", "pixel_unet")(
        image_shape=(1, 16, 16), max_channels=16
    )
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 1, 16, 16)


# -- LPIPS -----------------------------------------------------------------------------------------

OLD_STYLE = "ignore:(The parameter 'pretrained'|Arguments other than a weight):UserWarning"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Save a SqueezeNet with seeded weights; what matters here is that they are read."""
    torch.manual_seed(3)
    network = pytest.importorskip("torchvision").models.squeezenet1_1(weights=None)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("network", "file"),
    [
        ("vgg", "vgg16-397923af.pth"),
        ("alex", "alexnet-owt-7be5be79.pth"),
        ("squeeze", "squeezenet1_1-b8a52dc0.pth"),
    ],
)
def test_lpips_names_the_weights_it_needs(no_cache, network, file):
    with pytest.raises(CheckpointError) as caught:
        LPIPS(network)
    for part in (file, str(no_cache), "give the path of a copy"):
        assert part in str(caught.value)


@pytest.mark.filterwarnings(OLD_STYLE)  # the package asks torchvision in a deprecated way
def test_lpips_is_that_of_the_package(no_cache, backbone, checked_shapes):
    import lpips

    (no_cache / "squeezenet1_1-b8a52dc0.pth").write_bytes(backbone.read_bytes())
    theirs = lpips.LPIPS(net="squeeze", verbose=False)
    a, b = torch.rand(2, 3, 3, 33, 40) * 2 - 1
    ours = LPIPS("squeeze", backbone)
    assert torch.allclose(ours(a, b), theirs(a, b).flatten(), rtol=1e-5)
    assert ours(a, b).shape == (3,)
    assert float(ours(a, a).abs().max()) == 0


def test_weights_that_are_not_what_their_name_says_are_refused(no_cache, backbone):
    (no_cache / "squeezenet1_1-b8a52dc0.pth").write_bytes(backbone.read_bytes())
    with pytest.raises(CheckpointError, match="damaged or another file: its SHA-256 begins with"):
        LPIPS("squeeze")


def test_lpips_reads_safetensors(tmp_path, backbone):
    path = tmp_path / "squeezenet.safetensors"
    save_file(torch.load(backbone, weights_only=True), path)
    a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    assert LPIPS("squeeze", path)(a, b).equal(LPIPS("squeeze", backbone)(a, b))


def test_lpips_trains_what_it_looks_at_and_never_itself(backbone):
    distance = LPIPS("squeeze", backbone).train()
    assert not any(module.training for module in distance.modules())
    reconstruction = (torch.rand(2, 1, 32, 32) * 2 - 1).requires_grad_()  # grey
    distance(reconstruction, torch.zeros(2, 1, 32, 32)).mean().backward()
    assert reconstruction.grad.abs().amax((1, 2, 3)).gt(0).all()
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_refuses_other_weights_and_small_images(tmp_path, backbone):
    with pytest.raises(CheckpointError, match=r"not those of alex: .*size mismatch"):
        LPIPS("alex", backbone)
    state = torch.load(backbone, weights_only=True)
    del state["features.3.squeeze.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"Missing key.*3\.squeeze\.weight"):
        LPIPS("squeeze", tmp_path / "part.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, reason in (
        ("text.pth", r"cannot read .*text\.pth: .* Give a \.pth"),
        ("absent.pth", r"absent\.pth does not exist"),
        ("list.pth", r"list\.pth holds no tensors by name"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            LPIPS("squeeze", tmp_path / name)
    with pytest.raises(InputError, match=r"16×16 pixels are too small for LPIPS with squeeze"):
        LPIPS("squeeze", backbone)(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
