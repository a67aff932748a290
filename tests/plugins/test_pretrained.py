"""Models of diffusers and transformers as tokenizers: their ids, their images, their folders.

The libraries' own classes make small models with random weights, whose codes are spread so that
many are used, and save them as they save published ones.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderVidTok, VQModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.apertus1p5 import configuration_apertus1p5 as apertus_config
from transformers.models.apertus1p5 import modeling_apertus1p5 as apertus
from transformers.models.apertus1p5.image_processing_apertus1p5 import Apertus1p5ImageProcessor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.modeling_janus import JanusVQVAE

from spectok import load_tokenizer
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.images import to_float
from spectok.modeling import model_fingerprint
from spectok.testing import TokenizerConformance
from spectok_generation.pipeline_folder import find_class
from spectok_pretrained.encode_only import PretrainedChameleon

SIZE, GRID, CODES = 32, (8, 8), 64
SMALL = {"base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1}
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@dataclass
class Library:
    """A small model of a library: how it is built, and the library's own way through it."""

    build: Any
    ids: Any  # (model, images as it takes them) -> (B, T)
    images: Any = None  # (model, ids) -> (B, C, H, W); None: the library has no decoder
    size: int | None = None  # to load it with


def vq_model(**options):
    small = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "num_vq_embeddings": CODES,
        "norm_num_groups": 8,
        "latent_channels": 8,
        "sample_size": SIZE,
    }
    return VQModel(**small | options)


def vq_ids(model, images):
    return model.quantize(model.encode(images).latents)[2][2].view(len(images), -1)


def vq_images(model, ids):
    shape = (len(ids), *GRID, model.quantize.vq_embed_dim)
    if model.config.lookup_from_codebook:
        return model.decode(ids, force_not_quantize=True, shape=shape).sample
    codes = model.quantize.get_codebook_entry(ids, shape)
    return model.decode(codes, force_not_quantize=True).sample


def vidtok():
    return AutoencoderVidTok(
        ch=32,
        ch_mult=[1, 1, 2],
        z_channels=2,
        double_z=False,
        num_res_blocks=1,
        regularizer="fsq",
        codebook_size=CODES,
    )


def clip_of(model, images):
    return images.unsqueeze(2).repeat(1, 1, model.temporal_compression_ratio, 1, 1)


def janus():
    small = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "num_patches": GRID[0]}
    rest = {"projection_dim": 8, "hidden_size": 8, "image_token_embed_dim": 8}
    return JanusVQVAE(JanusVQVAEConfig(**small, **SMALL, **rest))


def emu3():
    small = {"codebook_size": CODES, "attn_resolutions": [8], "hidden_size": 64}
    return Emu3VQVAE(Emu3VQVAEConfig(**small, **SMALL))


def emu3_ids(model, images):
    sizes = torch.tensor([[SIZE, SIZE]] * len(images))
    return torch.stack(list(model.encode(images, sizes).image_tokens)).flatten(1)


def chameleon():
    small = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "resolution": SIZE}
    return ChameleonVQVAE(ChameleonVQVAEConfig(**small, **SMALL))


def apertus15():
    small = {"embed_dim": 8, "codebook_size": CODES, "latent_channels": 32, "resolution": SIZE}
    config = apertus_config.Apertus1p5VisionTokenizerConfig(**small, **SMALL, attn_resolutions=[8])
    return apertus.Apertus1p5VisionTokenizerModel(config)


def token_ids(model, images):
    return model.encode(images).image_tokens.view(len(images), -1)


MODELS = {
    "vqmodel": Library(vq_model, vq_ids, vq_images),
    "amused": Library(lambda: vq_model(lookup_from_codebook=True), vq_ids, vq_images),
    "movq": Library(
        lambda: vq_model(
            norm_type="spatial", vq_embed_dim=4, latent_channels=4, norm_num_groups=32
        ),
        vq_ids,
        vq_images,
    ),
    "vidtok": Library(
        vidtok,
        lambda model, images: model.encode(clip_of(model, images))[1].flatten(1),
        lambda model, ids: model.decode(ids.view(-1, 1, *GRID).int(), decode_from_indices=True)[
            :, :, 0
        ],
        SIZE,
    ),
    "janus": Library(janus, token_ids, lambda model, ids: model.decode(ids)),
    "emu3": Library(emu3, emu3_ids, lambda model, ids: model.decode(ids.view(-1, *GRID)), SIZE),
    "chameleon": Library(chameleon, token_ids),
    "apertus": Library(apertus15, token_ids),
}
DECODING = [name for name, library in MODELS.items() if library.images]
SLOW = ("amused", "movq", "vidtok", "janus", "emu3")  # whose extra checks take minutes on one core
ONE_NOW = [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in DECODING]


def spread_codes(model):
    """Make the codes vectors of the model's own latents of other images, so that many are used."""
    embedding = getattr(getattr(model, "quantize", None), "embedding", None)
    if embedding is None:
        return spread_latents(model)  # of VidTok, whose codes are given
    nn.init.normal_(embedding.weight)
    seen = []
    hook = model.quantize.register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    images = torch.rand(4, 3, SIZE, SIZE) * 2 - 1
    sizes = [torch.tensor([[SIZE, SIZE]] * 4)] if isinstance(model, Emu3VQVAE) else []
    found = model.encode(images, *sizes)
    if isinstance(model, VQModel):
        model.quantize(found.latents)
    hook.remove()
    latents = seen[0].flatten(0, 1) if seen[0].ndim == 5 else seen[0]
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    if isinstance(embedding, nn.Linear):  # the largest product wins: directions, all equally long
        model.quant_conv.bias -= vectors.mean(0)
        vectors = nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    embedding.weight.copy_(vectors[torch.randperm(len(vectors))[: len(embedding.weight)]])


def spread_latents(model):
    """Bring latents to mean 0 and deviation 1 in each channel."""
    latents = model._encode(clip_of(model, torch.rand(4, 3, SIZE, SIZE) * 2 - 1))
    deviation, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    last = model.encoder.conv_out.conv
    last.bias.copy_((last.bias - mean) / deviation)
    last.weight /= deviation.view(-1, 1, 1, 1, 1)


def make(name):
    """Return a model of a library in eval mode, built from seed 0."""
    torch.manual_seed(0)
    model = MODELS[name].build().eval()
    with torch.no_grad():
        spread_codes(model)
    return model


def write(path, content):
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves a model with its library, once, and gives both."""
    made = {}

    def save(name):
        if name not in made:
            folder, model = tmp_path_factory.mktemp(name), make(name)
            model.save_pretrained(folder)
            made[name] = (folder, model)
        return made[name]

    return save


def load(folder, name, **options):
    size = MODELS[name].size
    return load_tokenizer(folder, **({} if size is None else {"image_size": size}) | options)


def as_the_network_takes(name, images):
    """Return images in [-1, 1] as the library's processors scale them."""
    if name == "amused":
        return images * 0.5 + 0.5
    if name == "chameleon":
        return (images + 1) * (127.5 * 0.0078) - 1
    return images


# -- parity ---


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_ids_and_images_are_the_library_s(saved, name):
    folder, model = saved(name)
    tokenizer = load(folder, name)
    library = MODELS[name]
    ids = tokenizer.encode(IMAGES)
    wanted = library.ids(model, as_the_network_takes(name, IMAGES))
    assert torch.equal(ids, wanted.long())
    assert ids.unique().numel() >= 50
    assert tokenizer.token_spec.levels[0].shape == GRID
    if library.images is None:
        return
    images, decoded = library.images(model, ids), tokenizer.decode(ids)
    if name == "amused":  # its [0, 1] becomes our [-1, 1]: one rounding each
        assert (decoded - (images * 2 - 1)).abs().max() < 1e-6
        images, decoded = (
            images,
            tokenizer.decoder.network(
                tokenizer.decoder.post_quant_conv(
                    tokenizer.token_space.to_latents(tokenizer.embed(ids)).contiguous()
                )
            ),
        )
    assert torch.equal(decoded, images)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("janus")])
def test_other_sizes_are_the_librarys(saved, name):
    folder = saved(name)[0]
    tokenizer, built = load(folder, name), load_tokenizer(folder, image_size=2 * SIZE)
    there, step = tokenizer.at_size(2 * SIZE), tokenizer.size_multiple
    assert there.token_spec == built.token_spec
    images = (
        torch.rand(1, 3, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    assert torch.equal(there.encode(images), built.encode(images))
    wide = load_tokenizer(folder, image_size=(SIZE, SIZE + step))
    assert wide.image_shape == (3, SIZE, SIZE + step)
    part = images[..., :SIZE, : SIZE + step]
    indices = wide.encode(part)
    assert indices.shape == (1, (SIZE // step) * (SIZE // step + 1))
    if name in DECODING:
        assert torch.equal(there.decode(there.encode(images)), built.decode(built.encode(images)))
        assert wide.decode(indices).shape == part.shape
        assert tokenizer.reconstruct(images, tile=SIZE, overlap=step).shape == images.shape


def test_janus_keeps_its_size(saved):
    with pytest.raises(InputError, match="Janus decodes one size alone; resize them, or cut"):
        load(saved("janus")[0], "janus").at_size(2 * SIZE)


@pytest.mark.parametrize("name", DECODING)
@torch.no_grad()
def test_a_saved_tokenizer_loads_again(saved, name, tmp_path):
    tokenizer = load(saved(name)[0], name)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    ids = tokenizer.encode(IMAGES)
    assert type(again) is type(tokenizer)
    assert torch.equal(again.encode(IMAGES), ids)
    assert torch.equal(again.decode(ids), tokenizer.decode(ids))
    assert model_fingerprint(again) == model_fingerprint(tokenizer)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_pipeline_may_name_one():
    found = find_class("tokenizer", PretrainedChameleon.__module__, PretrainedChameleon.__name__)
    assert found is PretrainedChameleon


@pytest.mark.parametrize("name", ONE_NOW)
def test_in_bfloat16_the_quantizer_stays_float32(saved, name):
    folder, _ = saved(name)
    for tokenizer in (load(folder, name, torch_dtype="bfloat16"), load(folder, name)):
        tokenizer.to(torch.bfloat16)
        assert tokenizer.dtype == torch.bfloat16
        kept = [t.dtype for t in tokenizer.quantizer.state_dict().values() if t.is_floating_point()]
        assert set(kept) <= {torch.float32}
        ids = tokenizer.encode(IMAGES)
        tokenizer.token_spec.validate(ids)
        assert tokenizer.decode(ids).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["amused", "chameleon"])  # whose pixels are scaled
@torch.no_grad()
def test_bfloat16_gives_the_same_ids_loaded_converted_and_saved(saved, name, tmp_path):
    folder, _ = saved(name)
    converted = load(folder, name).to(torch.bfloat16)
    converted.save_pretrained(tmp_path)
    ids = converted.encode(IMAGES)
    for tokenizer in (
        load(folder, name, torch_dtype="bfloat16"),
        load_tokenizer(tmp_path, torch_dtype="auto"),
    ):
        assert tokenizer.dtype == torch.bfloat16
        assert torch.equal(tokenizer.encode(IMAGES), ids)


@pytest.mark.parametrize("name", ["chameleon", "apertus"])
def test_what_has_no_decoder_says_so(saved, name):
    folder, model = saved(name)
    tokenizer = load(folder, name)
    ids = tokenizer.encode(IMAGES)
    assert tokenizer.embed(ids).shape == (3, GRID[0] * GRID[1], 8)
    with pytest.raises(InputError, match=f"{type(model).__name__} of transformers has no decoder"):
        tokenizer.decode(ids)


# -- what the checkpoint's processor does ---

SQUARE = {"height": SIZE, "width": SIZE}
PROCESSORS = {  # each as its checkpoints or its library have it, at a small size
    "janus": (JanusImageProcessorPil, {"size": SQUARE, "image_mean": [0.5] * 3}),
    "emu3": (Emu3ImageProcessor, {"min_pixels": SIZE**2, "max_pixels": 4 * SIZE**2}),
    "chameleon": (
        ChameleonImageProcessorPil,
        {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE},
    ),
    "apertus": (Apertus1p5ImageProcessor, {"size": {"min_pixels": 256, "max_pixels": 4096}}),
}


@pytest.mark.parametrize("name", PROCESSORS)
@torch.no_grad()
def test_images_are_scaled_as_the_processor_does(saved, name, tmp_path, capsys):
    folder, model = saved(name)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    cls, options = PROCESSORS[name]
    processor = cls(**options)
    processor.save_pretrained(tmp_path)
    capsys.readouterr()
    tokenizer = load_tokenizer(tmp_path)
    assert capsys.readouterr().err == ""
    assert tokenizer.image_shape == (3, SIZE, SIZE)
    assert tokenizer.resize_filter == {1: "lanczos", 3: "bicubic"}[int(processor.resample)]
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    wanted = processor(pixels, return_tensors="pt")["pixel_values"]
    image = to_float(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))[None]
    found = tokenizer.encoder.scale.to_network(image)
    assert (found - wanted).abs().max() < 1e-6
    assert (tokenizer.encoder.scale.to_images(found) - image).abs().max() < 1e-6
    near_ties = tokenizer.encode(image) != MODELS[name].ids(model, wanted)
    assert near_ties.float().mean() <= 0.05


@pytest.mark.parametrize("name", ["janus", "vidtok", "chameleon"])
def test_without_a_processor_it_says_what_is_assumed(saved, name, capsys):
    folder, _ = saved(name)
    capsys.readouterr()
    load(folder, name)
    noted = capsys.readouterr().err
    assert noted.startswith("note: ")
    assert "32×32 pixels" in noted
    assert ("[-1, 0.989]" if name == "chameleon" else "[-1, 1]") in noted


def test_chameleon_is_assumed_to_be_scaled_as_its_library_does():
    usual, theirs = PretrainedChameleon.usual, ChameleonImageProcessorPil
    assert usual.rescale_factor == theirs.rescale_factor
    assert [usual.image_mean] * 3 == theirs.image_mean
    assert [usual.image_std] * 3 == theirs.image_std
    assert usual.resample == theirs.resample


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": "wide"},
        {"rescale_factor": 0},
        {"size": {"height": "tall"}},
        {"image_mean": [1e400]},
    ],
)
def test_a_processor_is_not_believed(saved, wrong, tmp_path):
    shutil.copytree(saved("emu3")[0], tmp_path, dirs_exist_ok=True)
    write(tmp_path / "preprocessor_config.json", {"size": SQUARE} | wrong)
    with pytest.raises(CheckpointError, match=r"copy it again|not valid JSON") as caught:
        load_tokenizer(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


# -- inside a language model ---

WHOLE = {
    "janus": ("janus", "model.vqmodel", "vq_config"),
    "emu3": ("emu3", "vqmodel", "vq_config"),
    "chameleon": ("chameleon", "model.vqmodel", "vq_config"),
    "apertus": ("apertus1p5", "model.vision_tokenizer", "vision_config"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_tokenizer_inside_a_language_model_is_found(saved, name, tmp_path):
    folder, _ = saved(name)
    kind, part, section = WHOLE[name]
    config = json.loads((folder / "config.json").read_text())
    vision = {"vision_config": {"image_size": SIZE, "patch_size": SIZE // GRID[0]}}
    whole = (vision if name == "janus" else {}) | {"model_type": kind, section: config}
    write(tmp_path / "config.json", whole)
    weights = load_file(folder / "model.safetensors")
    shards = {f"{part}.{key}": "model-00002-of-00002.safetensors" for key in weights}
    others = {"model.language_model.layers.0.weight": "model-00001-of-00002.safetensors"}
    write(tmp_path / "model.safetensors.index.json", {"weight_map": others | shards})
    beside = {"lm_head.weight": torch.zeros(2)}  # in the same shard, and no part of it
    inside = {f"{part}.{key}": value for key, value in weights.items()}
    save_file(inside | beside, tmp_path / "model-00002-of-00002.safetensors")
    found, wanted = load(tmp_path, name), load(folder, name)  # the first shard is not needed
    assert torch.equal(found.encode(IMAGES), wanted.encode(IMAGES))
    assert model_fingerprint(found) == model_fingerprint(wanted)


def test_a_language_model_without_its_tokenizer_is_refused(tmp_path):
    write(tmp_path / "config.json", {"model_type": "emu3"})
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no section vq_config"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("vidtok", {"regularizer": "kl", "double_z": True}, "continuous latents and no tokens"),
        ("vidtok", {"is_causal": False}, "decodes no single frame"),
        ("janus", {"num_patches": -1}, "image_size -4 is no multiple"),
        ("janus", {"embed_dim": "eight"}, "network: not one of JanusVQVAEConfig"),
        ("emu3", {"channel_multiplier": []}, "network: not one of Emu3VQVAE"),
        ("chameleon", {"num_res_blocks": 10**9}, "over 1,048,576"),
    ],
)
def test_a_config_is_not_believed(saved, name, change, reason, tmp_path):
    shutil.copytree(saved(name)[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path / "config.json", config | change)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load(tmp_path, name) if name != "janus" else load_tokenizer(tmp_path)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_janus_takes_one_size(saved):
    with pytest.raises(ConfigError, match="image_size 64 is not 32"):
        load_tokenizer(saved("janus")[0], image_size=64)


# -- the contract ---

FROZEN = "a frozen model has no parameter that a gradient changes"
UNTRAINED = "a frozen model does not train, so no two ways to train it can differ"


class TestContract(TokenizerConformance):
    skip = {  # noqa: RUF012
        "test_every_parameter_gets_a_gradient": FROZEN,
        "test_gradient_reaches_the_encoder": FROZEN,
        "test_loss_falls_on_eight_images": FROZEN,
        "test_training_under_autocast_is_finite": FROZEN,
        "test_accumulation_equals_one_big_step": UNTRAINED,
        "test_two_processes_equal_one": UNTRAINED,
    }

    tolerance = 1e-4  # the libraries' convolutions round differently for one image and for two

    @pytest.fixture(params=ONE_NOW)
    def build(self, request, saved):
        name = request.param
        smaller = {} if name == "janus" else {"image_size": SIZE // 2}
        return lambda: load(saved(name)[0], name, **smaller)
