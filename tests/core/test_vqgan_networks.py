"""VQGAN's encoder and decoder: the two convolutions on either side of the codes, and models and
runs from before the decoder had both."""

import json

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from spectok import load_tokenizer
from spectok.cli import main
from spectok.errors import InputError
from spectok.nn import VQGANDecoder, VQGANEncoder
from spectok.training.log import read_log

TINY = {
    "image_size": 8,
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_blocks": 1,
    "attention_sizes": (),
}
KEYS = ["vqgan", "rqvae", "hqvae", "favae"]
OPTIONS = {"image_size": 16, "in_channels": 1, "codebook_size": 16, "channels": 8, "num_blocks": 1}


def tokenizer(key, **options):
    return load_tokenizer(key, **(OPTIONS | {"codebook_dim": 8} | options))


def convolutions(module):
    """Return kernel size, channels in and channels out of each convolution, in order."""
    found = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [(m.kernel_size[0], m.in_channels, m.out_channels) for m in found]


def test_both_sides_of_the_codes_have_a_1x1_convolution_and_a_width_of_their_own():
    encoder, decoder = VQGANEncoder(3, 4, z_channels=6, **TINY), VQGANDecoder(4, 3, **TINY)
    assert convolutions(encoder.head) == [(3, 16, 6), (1, 6, 4)]
    assert convolutions(decoder.stem) == [(1, 4, 4), (3, 4, 16)]
    decoder = VQGANDecoder(4, 3, z_channels=6, **TINY)
    assert convolutions(decoder.stem) == [(1, 4, 6), (3, 6, 16)]
    latents = encoder(torch.rand(2, 3, 8, 8))
    assert latents.shape == (2, 4, 4, 4)
    assert decoder(latents).shape == (2, 3, 8, 8)
    assert convolutions(VQGANDecoder(4, 3, post_quant_conv=False, **TINY).stem) == [(3, 4, 16)]


def test_without_attention_in_the_middle_no_pixel_sees_a_distant_one():
    image = torch.rand(1, 1, 64, 64)
    changed = image.clone()
    changed[..., :2, :2] += 1
    for attends in (True, False):
        model = tokenizer("vqgan", image_size=64, middle_attention=attends).eval()
        for module in model.modules():  # a group's mean and deviation see everything, too
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x: x
        with torch.no_grad():
            difference = model.encode_latents(changed) - model.encode_latents(image)
        assert bool(difference[..., -1, -1].any()) == attends


@pytest.mark.parametrize("bias", [True, False])
def test_a_1x1_and_a_3x3_convolution_are_one_map_except_at_the_border(bias):
    """The zeros around the second one's input lack the first one's bias."""
    decoder = VQGANDecoder(4, 3, z_channels=6, **TINY)
    first, second = decoder.stem
    if not bias:
        nn.init.zeros_(first.bias)
    weight = torch.einsum("ozhw,zl->olhw", second.weight, first.weight[..., 0, 0])
    constant = second.bias + torch.einsum("ozhw,z->o", second.weight, first.bias)
    latents = torch.randn(2, 4, 8, 8)
    difference = decoder.stem(latents) - conv2d(latents, weight, constant, padding=1)
    assert difference[..., 1:-1, 1:-1].abs().max() < 1e-5
    border = difference[..., [0, -1], :].abs().amax(dim=(0, 1))
    assert (border > 1e-3).all() if bias else (border < 1e-5).all()


@pytest.mark.parametrize("key", KEYS)
def test_the_latent_width_is_apart_from_the_length_of_a_code(key):
    model = tokenizer(key, z_channels=12, post_quant_conv=True).eval()
    assert convolutions(model.encoder.head)[-1] == (1, 12, 8)
    assert convolutions(model.decoder.stem)[0] == (1, 8, 12)
    assert model.latent_shape[0] == 8
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    assert model.encode_latents(images).shape == (2, *model.latent_shape)
    reconstruction = model(images).reconstruction
    torch.testing.assert_close(model.decode(model.encode(images)), reconstruction)
    assert model.last_layer is model.decoder.head[-1].weight


@pytest.mark.parametrize("key", KEYS)
def test_the_decoder_begins_as_in_the_released_code(key):
    widths = convolutions(tokenizer(key).decoder.stem)
    has_complements = key == "favae"  # and the first of them in place of the 1x1 convolution
    assert widths == ([] if has_complements else [(1, 8, 8)]) + [(3, 8, widths[-1][2])]


def forget_options(path, *sections):
    """Remove from a JSON file what the version before did not write."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    section = content
    for name in sections:
        section = section[name]
    del section["z_channels"], section["post_quant_conv"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", KEYS)
def test_a_model_saved_without_these_options_loads_as_it_was(tmp_path, key):
    model = tokenizer(key, post_quant_conv=False).eval()
    model.save_pretrained(tmp_path)
    forget_options(tmp_path / "config.json")
    loaded = load_tokenizer(tmp_path)
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert torch.equal(loaded(images).reconstruction, model(images).reconstruction)
    assert loaded.first_config() == model.first_config()
    assert "post_quant_conv" not in loaded.first_config()


def test_a_model_with_these_options_loads_with_them(tmp_path):
    model = tokenizer("vqgan", z_channels=12)
    model.save_pretrained(tmp_path)
    assert convolutions(load_tokenizer(tmp_path).decoder.stem)[0] == (1, 8, 12)
    assert model.first_config()["post_quant_conv"] is True


def train(output, *words):
    with pytest.raises(SystemExit) as stop:
        main(["train", "smoke/vqgan", "train.log_every=1", *words, "--output", str(output)])
    return stop.value.code


@pytest.mark.slow
def test_a_run_begun_without_these_options_goes_on_without_them(tmp_path, capsys):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    before = "tokenizer.post_quant_conv=false"
    assert train(straight, before, "train.steps=4") == 0
    assert train(resumed, before, "train.steps=2") == 0
    manifest = resumed / "checkpoints" / "step-00000002" / "manifest.json"
    forget_options(manifest, "recipe", "tokenizer")
    assert train(resumed, "train.steps=4", "--resume", "tokenizer.z_channels=12") == 2
    assert "tokenizer.z_channels: the run to resume has None, not 12" in capsys.readouterr().err
    assert train(resumed, "train.steps=4", "--resume") == 0
    losses = [[line["loss"] for line in read_log(run / "log.jsonl")] for run in (straight, resumed)]
    assert losses[0] == losses[1]
    saved = json.loads((resumed / "model" / "config.json").read_text())
    assert saved["post_quant_conv"] is False


def test_a_run_of_this_version_keeps_its_options(tmp_path, capsys):
    assert train(tmp_path, "train.steps=2") == 0
    words = ["train.steps=3", "--resume", "tokenizer.post_quant_conv=false"]
    assert train(tmp_path, *words) == 2
    assert "post_quant_conv: the run to resume has True, not False" in capsys.readouterr().err


@pytest.mark.parametrize("width", [0, -1])
def test_a_latent_width_below_one_is_refused_by_name(width):
    with pytest.raises(InputError, match=f"z_channels {width} must be at least 1"):
        VQGANEncoder(
            1,
            4,
            image_size=8,
            channels=4,
            channel_multipliers=[1],
            num_blocks=1,
            attention_sizes=[],
            z_channels=width,
        )
