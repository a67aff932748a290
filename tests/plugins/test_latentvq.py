"""What is particular to codes in an autoencoder's latents: what is frozen, measured, and kept."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from spectok import load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.planning.measuring import measure_step
from spectok.planning.subjects import tokenizer_subject
from spectok.testing import TokenizerConformance
from spectok.training import train_tokenizer
from spectok.training.log import read_log
from spectok.training.recipe import load_tokenizer_recipe
from spectok.training.tokenizer import rehearse_tokenizer
from spectok_latentvq import latents as cache
from spectok_latentvq.token_space import FrequencyTokens, StandardTokens, cosines

TWO = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
TWO |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "norm_num_groups": 4}
DEEP = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
BLOCKS = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
BLOCKS |= {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
BLOCKS |= {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
MAKERS = {
    "kl": lambda: AutoencoderKL(**TWO, latent_channels=4),
    "kl without 1x1": lambda: AutoencoderKL(
        **TWO, latent_channels=3, use_quant_conv=False, use_post_quant_conv=False
    ),
    "dc": lambda: AutoencoderDC(**DEEP, **BLOCKS, latent_channels=8, attention_head_dim=8),
    "tiny": lambda: AutoencoderTiny(
        **DEEP | {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)},
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return folders of small autoencoders with random weights, by kind."""
    torch.manual_seed(3)
    base = tmp_path_factory.mktemp("autoencoders")
    for kind, make in MAKERS.items():
        make().save_pretrained(base / kind)
    return {kind: base / kind for kind in MAKERS}


@pytest.fixture
def recipe(folders):
    """Return a function that reads a small recipe: 32 generated pictures, 16 pixels wide."""

    def read(*changes, kind="kl"):
        common = ["data.name=shapes", "data.limit=70", "data.image_size=16", "train.steps=4"]
        common += [f"tokenizer.autoencoder={folders[kind]}", "tokenizer.codebook_size=16"]
        common += ["train.batch_size=8", "train.sample_every=null", "train.log_every=1"]
        return load_tokenizer_recipe("latentvq", [*common, *changes])

    return read


def state_of(model, part):
    return {n: v.clone() for n, v in model.state_dict().items() if n.startswith(part)}


def differing(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


# -- the autoencoder ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_both_ends_are_those_of_the_library(folders, kind):
    # Frozen like ours: attention has another kernel, which rounds otherwise, where gradients flow.
    network = MAKERS[kind]().from_pretrained(folders[kind]).eval().requires_grad_(False)
    tokenizer = load_tokenizer("latentvq", image_size=16, autoencoder=str(folders[kind]))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        found = network.encode(images)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found[0]
        assert tuple(latents.shape[1:]) == tokenizer.latent_shape
        assert torch.equal(tokenizer.encode_latents(images), latents)
        assert torch.equal(tokenizer.decoder(latents), network.decode(latents).sample)


@pytest.mark.parametrize("kind", MAKERS)
def test_other_sizes_are_the_librarys_with_the_measured_statistics(folders, recipe, tmp_path, kind):
    train_tokenizer(recipe(kind=kind), tmp_path / "run")
    network = MAKERS[kind]().from_pretrained(folders[kind]).eval().requires_grad_(False)
    trained = load_tokenizer(tmp_path / "run" / "model")
    there = load_tokenizer(tmp_path / "run" / "model", image_size=(24, 40))
    assert there.image_shape == (3, 24, 40)
    assert there.token_spec.levels[0].shape == (12, 20)
    assert int(there.token_space.num_measured) > 0
    for name in ("mean", "deviation", "num_measured"):
        assert torch.equal(getattr(there.token_space, name), getattr(trained.token_space, name))
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        found = network.encode(images)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found[0]
        assert torch.equal(there.encode_latents(images), latents)
        indices = there.encode(images)
        assert len(indices.unique()) > 4
        z_q = there.embed(indices).mT.unflatten(-1, (12, 20))
        space = trained.token_space
        mean, deviation = (v[:, None, None] for v in (space.mean, space.deviation))
        decoded = network.decode(z_q * deviation + mean).sample
        assert torch.equal(there.decode(indices), decoded)
    tiles = trained.reconstruct(images, tile=16, overlap=8)
    assert tiles.shape == trained.reconstruct(images).shape == images.shape
    for size, reason in (((24, 41), "not a multiple of 2"), (1, "not a multiple of 2")):
        with pytest.raises(InputError, match=reason):
            load_tokenizer(tmp_path / "run" / "model", image_size=size)


@pytest.mark.parametrize("kind", ["global", "frequency"])
def test_tokens_of_the_whole_image_keep_their_size(folders, kind):
    options = {"image_size": 16, "autoencoder": str(folders["kl"]), "token_space": kind}
    tokenizer = load_tokenizer("latentvq", **options, codebook_size=16).eval()
    with pytest.raises(InputError, match=r"the whole image.*cut them into tiles of 16×16"):
        tokenizer.at_size(32)
    images = torch.rand(1, 3, 20, 33) * 2 - 1
    assert tokenizer.reconstruct(images, tile=16, overlap=4).shape == images.shape


def test_the_saved_folder_is_complete(folders, recipe, tmp_path, monkeypatch):
    moved = tmp_path / "autoencoder"
    shutil.copytree(folders["kl"], moved)
    result = train_tokenizer(recipe(f"tokenizer.autoencoder={moved}"), tmp_path / "run")
    shutil.rmtree(moved)
    monkeypatch.setenv("SPECTOK_CACHE", str(tmp_path / "elsewhere"))
    loaded = load_tokenizer(tmp_path / "run" / "model")
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    trained = result.model.eval()
    assert torch.equal(loaded.encode(images), trained.encode(images))
    assert differing(loaded.state_dict(), trained.state_dict()) == []
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["autoencoder"]["_class_name"] == "AutoencoderKL"
    assert str(tmp_path) not in json.dumps(config)


def test_the_folder_of_a_pipeline_and_one_in_a_hub_id_are_found(folders, tmp_path):
    shutil.copytree(folders["kl"], tmp_path / "pipeline" / "vae")
    images = torch.rand(2, 3, 16, 16)
    direct, inside = (
        load_tokenizer("latentvq", image_size=16, autoencoder=str(folder))
        for folder in (folders["kl"], tmp_path / "pipeline")
    )
    assert torch.equal(direct.encode_latents(images), inside.encode_latents(images))


# -- what is frozen -------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["grid", "global", "frequency"])
@pytest.mark.parametrize("quantizer", ["ema", "vq"])
@pytest.mark.parametrize("trained", [False, True])
def test_only_what_is_to_be_trained_changes(recipe, tmp_path, space, quantizer, trained):
    section = recipe(
        f"tokenizer.token_space={space}",
        f"tokenizer.quantizer.name={quantizer}",
        f"tokenizer.train_decoder={str(trained).lower()}",
        "tokenizer.num_tokens=6",
        "train.ema_decay=0.9",
    )
    fresh = load_tokenizer(**{"name_or_path": "latentvq"} | without_name(section.tokenizer))
    result = train_tokenizer(section, tmp_path / "run")
    before, after = fresh.state_dict(), result.model.state_dict()
    changed = {name.partition(".")[0] for name in differing(before, after)}
    # a grid and frequencies only get their statistics
    assert changed == {"quantizer", "token_space"} | ({"decoder"} if trained else set())
    assert ("loss/reconstruction" in result.history[-1]) == trained
    assert result.history[-1]["loss/latent"] < result.history[0]["loss/latent"]


def without_name(section):
    return {key: value for key, value in section.items() if key != "name"}


def test_terms_of_the_recipe_compare_images_through_the_frozen_decoder(recipe, tmp_path):
    section = recipe("losses.l1=1.0", "tokenizer.token_space=global", "tokenizer.num_tokens=6")
    result = train_tokenizer(section, tmp_path / "run")
    assert result.history[-1]["loss/l1"] > 0
    assert "loss/reconstruction" not in result.history[-1]
    fresh = load_tokenizer("latentvq", **without_name(section.tokenizer))
    assert differing(state_of(fresh, "decoder"), state_of(result.model, "decoder")) == []


def test_an_adaptive_discriminator_needs_a_trained_decoder(folders):
    tokenizer = load_tokenizer("latentvq", image_size=16, autoencoder=str(folders["kl"]))
    with pytest.raises(ConfigError, match=r"decoder is frozen; set tokenizer\.train_decoder=true"):
        _ = tokenizer.last_layer


def test_a_step_without_gradients_is_planned(recipe):
    section = recipe()
    cost = measure_step(lambda: tokenizer_subject(section), section.train)
    assert cost.parameters == cost.gradients == cost.optimizer == 0
    assert cost.weights > 10_000
    assert measure_step(
        lambda: tokenizer_subject(recipe("tokenizer.train_decoder=true")), section.train
    ).gradients > 10_000  # fmt: skip


# -- token spaces ---------------------------------------------------------------------------------


def test_measured_latents_have_mean_zero_and_deviation_one(folders):
    latents = 3 + 5 * torch.randn(200, 4, 8, 8) * torch.tensor([1.0, 2, 3, 4])[:, None, None]
    smooth = torch.nn.functional.avg_pool2d(latents, 3, 1, 1)
    for inner in ("grid", "frequency"):
        options = {"image_size": 16, "autoencoder": str(folders["kl"]), "token_space": inner}
        space = load_tokenizer("latentvq", **options).token_space
        assert isinstance(space, StandardTokens)
        space.measure(smooth.split(64))
        vectors = space.to_vectors(smooth)
        if inner == "grid":
            torch.testing.assert_close(vectors.mean((0, 1)), torch.zeros(4), atol=1e-4, rtol=0)
            torch.testing.assert_close(vectors.std((0, 1)), torch.ones(4), atol=1e-4, rtol=0)
        else:  # each frequency on its own
            root = vectors.square().mean(0).sqrt()
            torch.testing.assert_close(root, torch.ones_like(root), atol=1e-4, rtol=0)
        assert space.num_measured == 200
        torch.testing.assert_close(space.to_latents(vectors), smooth, atol=1e-3, rtol=0)


def test_the_cosine_transform_is_orthonormal_and_orders_frequencies():
    for size in (1, 5, 8):
        matrix = cosines(size)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-6, rtol=0)
    space, wave = FrequencyTokens(4, 8, 2), torch.zeros(1, 2, 4, 8)
    wave[:] = torch.cos(torch.pi / 8 * 7 * (torch.arange(8) + 0.5))
    constant = space.to_vectors(torch.ones(1, 2, 4, 8))[0].abs()
    fast = space.to_vectors(wave)[0].abs()
    assert constant[0].min() > 1
    assert constant[1:].max() < 1e-5
    assert fast.sum(1).argmax() > 16


def test_the_first_frequencies_decode_to_smooth_latents(folders):
    options = {"image_size": 16, "autoencoder": str(folders["kl"]), "token_space": "frequency"}
    tokenizer = load_tokenizer("latentvq", **options, quantizer={"name": "fsq"}).eval()
    assert tokenizer.token_spec.decodable_prefixes == tuple(range(65))
    latents, space = torch.randn(2, 4, 8, 8), tokenizer.token_space
    z = space.to_vectors(latents)
    errors = [
        (space.to_latents(z, torch.full((2,), kept)) - latents).square().mean().item()
        for kept in (0, 16, 32, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10
    one = space.to_latents(z, torch.ones(2, dtype=torch.int64))
    torch.testing.assert_close(one, latents.mean((2, 3), keepdim=True).expand_as(one))


# -- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Count the images that are encoded to fill caches, in the list that is returned."""
    seen, original = [], cache.encoded

    def encoded(encoder, dataset, rows):
        for latents in original(encoder, dataset, rows):
            seen.append(len(latents))
            yield latents

    monkeypatch.setattr(cache, "encoded", encoded)
    return seen


def test_latents_are_computed_once_for_all_quantizers(recipe, tmp_path, counted):
    for quantizer in ("ema", "rq", "product"):
        run = tmp_path / quantizer
        train_tokenizer(recipe(f"tokenizer.quantizer={quantizer}"), run)
    assert sum(counted) == 70
    train_tokenizer(recipe("data.limit=69"), tmp_path / "less")  # other data
    train_tokenizer(recipe(kind="tiny"), tmp_path / "other")  # another autoencoder
    assert sum(counted) == 70 + 69 + 70


def open_cache(folders):
    dataset = build_dataset(DataConfig(name="shapes", limit=70, image_size=16))
    tokenizer = load_tokenizer("latentvq", image_size=16, autoencoder=str(folders["kl"])).eval()
    config = dict(tokenizer.config["autoencoder"])
    options = (tokenizer.encoder, config, dataset, tokenizer.latent_shape)
    return tokenizer, dataset, cache.cached_latents(*options, with_images=True)


def test_cached_latents_are_those_of_encode_latents(folders):
    tokenizer, dataset, cached = open_cache(folders)
    assert len(cached) == 70
    for index in (0, 63, 64, 69):
        item = cached[index]
        assert torch.equal(item["images"], dataset[index]["images"])
        with torch.no_grad():
            latents = tokenizer.encode_latents(item["images"][None])[0]
        torch.testing.assert_close(item["latents"], latents, atol=1e-5, rtol=1e-5)


def test_a_cache_that_was_stopped_goes_on(folders, counted):
    _, _, cached = open_cache(folders)
    whole = cached.file.read_bytes()
    (cached.file.parent / cache.HEADER).unlink()  # it is written last
    os.truncate(cached.file, len(whole) - 1)
    counted.clear()
    assert open_cache(folders)[2].file.read_bytes() == whole
    assert sum(counted) == 6  # the second batch
    os.truncate(cached.file, len(whole) - 1)
    with pytest.raises(CheckpointError, match="is cut short; remove the folder"):
        open_cache(folders)


def test_a_cache_whose_bytes_were_changed_is_refused(folders):
    file = open_cache(folders)[2].file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged; remove the folder"):
        open_cache(folders)


def test_augmented_images_are_encoded_in_each_step(recipe, tmp_path, counted, capsys):
    result = train_tokenizer(recipe("data.horizontal_flip=true"), tmp_path / "run")
    assert "computed anew in each step, not cached" in capsys.readouterr().err
    assert result.model.token_space.num_measured == 70
    assert result.history[-1]["loss/latent"] < 1
    assert not list(Path(os.environ["SPECTOK_CACHE"]).rglob(cache.LATENTS))


def test_a_folder_that_cannot_be_written_is_named(recipe, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECTOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be written.*set SPECTOK_CACHE to a folder"):
        train_tokenizer(recipe(), tmp_path / "run")


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        ["tokenizer.quantizer.name=product"],
        ["tokenizer.train_decoder=true", "tokenizer.token_space=global", "train.ema_decay=0.9"],
        ["data.max_shift=1", "tokenizer.quantizer.name=vq"],
    ],
    ids=["cached", "trained", "augmented"],
)
def test_a_resumed_run_is_bit_identical(recipe, tmp_path, changes):
    long = recipe(*changes, "train.save_every=2")
    whole = train_tokenizer(long, tmp_path / "whole")
    short = recipe(*changes, "train.save_every=2", "train.steps=2")
    train_tokenizer(short, tmp_path / "parts")
    parts = train_tokenizer(long, tmp_path / "parts", resume=True)
    assert differing(whole.model.state_dict(), parts.model.state_dict()) == []
    losses = [[r["loss"] for r in read_log(tmp_path / f / "log.jsonl")] for f in ("whole", "parts")]
    assert losses[0] == losses[1]


def train_rank(recipe, output):
    result = train_tokenizer(recipe, output)
    state = {name: v.tolist() for name, v in state_of(result.model, "quantizer").items()}
    (output / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(state))


def test_two_processes_train_as_one(recipe, tmp_path, fork_ranks):
    """Nothing has a gradient: codes are averaged, on a grid, in a frozen autoencoder."""
    one = train_tokenizer(recipe(), tmp_path / "one")
    assert fork_ranks(train_rank, recipe("train.batch_size=4"), tmp_path / "two") == [0, 0]
    ranks = [json.loads((tmp_path / "two" / f"rank-{r}.json").read_text()) for r in (0, 1)]
    assert ranks[0] == ranks[1]
    for name, value in state_of(one.model, "quantizer").items():
        torch.testing.assert_close(torch.tensor(ranks[0][name], dtype=value.dtype), value)


def test_statistics_of_the_model_that_is_trained_on_stay(recipe, tmp_path):
    first = train_tokenizer(recipe(), tmp_path / "first")
    section = recipe("data.limit=20", f"init_from={tmp_path / 'first'}")
    second = train_tokenizer(section, tmp_path / "second")
    assert second.model.token_space.num_measured == 70
    space = first.model.token_space
    assert torch.equal(second.model.token_space.deviation, space.deviation)


def test_random_weights_are_remarked_on(recipe, tmp_path, capsys):
    train_tokenizer(recipe("tokenizer.autoencoder=null"), tmp_path / "run")
    assert "the autoencoder has random weights" in capsys.readouterr().err


class TestFrozen(TokenizerConformance):
    """All of the network frozen; the affine maps of the global tokens take the gradients."""

    skip = {  # noqa: RUF012
        "test_gradient_reaches_the_encoder": "the encoder is frozen",
        "test_loss_falls_on_eight_images": "a frozen decoder with random weights draws no image",
    }

    @pytest.fixture
    def build(self, folders):
        options = {"image_size": 16, "autoencoder": str(folders["kl"]), "token_space": "global"}
        options |= {"num_tokens": 8, "codebook_dim": 8, "codebook_size": 32}
        return lambda: load_tokenizer("latentvq", **options)


# -- what is refused ------------------------------------------------------------------------------


def refused(error, match, **options):
    with pytest.raises(error, match=match) as caught:
        load_tokenizer("latentvq", **{"image_size": 16} | options)
    assert "\n" not in str(caught.value)


def test_what_is_no_autoencoder_is_refused(folders, tmp_path):
    refused(CheckpointError, r"has no config\.json", autoencoder=str(tmp_path))
    refused(CheckpointError, "does not exist", autoencoder=str(tmp_path / "nothing"))
    VQModel(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vq")
    refused(
        ConfigError,
        "holds a VQModel; give one of AutoencoderKL, AutoencoderDC, AutoencoderTiny",
        autoencoder=str(tmp_path / "vq"),
    )
    refused(ConfigError, "names no class", autoencoder={"latent_channels": 4})
    broken = {"_class_name": "AutoencoderKL", "down_block_types": ["Nothing"]}
    refused(ConfigError, "describes no AutoencoderKL", autoencoder=broken)


def test_sizes_that_do_not_fit_are_refused(folders):
    name = str(folders["kl"])
    refused(ConfigError, r"images of 3 channels, and in_channels is 1; set data\.channels=3",
            autoencoder=name, in_channels=1)  # fmt: skip
    refused(InputError, "image_size 15 is not divisible by downsample_factor 2",
            autoencoder=name, image_size=15)  # fmt: skip


def test_missing_and_foreign_weights_are_refused(folders, recipe, tmp_path):
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copytree(folders["kl"], tmp_path / "none")
    (tmp_path / "none" / weights).unlink()
    refused(CheckpointError, f"it has no {weights}", autoencoder=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="it has no"):  # before anything is trained
        rehearse_tokenizer(recipe(f"tokenizer.autoencoder={tmp_path / 'none'}"))
    shutil.copytree(folders["dc"], tmp_path / "foreign")
    shutil.copy(folders["kl"] / weights, tmp_path / "foreign" / weights)
    refused(CheckpointError, "does not fit|cannot load", autoencoder=str(tmp_path / "foreign"))


def test_a_hub_id_without_a_network_names_where_a_copy_may_be():
    refused(
        CheckpointError,
        "cannot fetch 'nobody/autoencoder'.*give the folder of a copy, or fetch it .* into /",
        autoencoder="nobody/autoencoder/vae",
    )


def test_a_saved_config_cannot_name_another_place(folders, tmp_path):
    tokenizer = load_tokenizer("latentvq", image_size=16, autoencoder=str(folders["kl"]))
    tokenizer.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"autoencoder": "nobody/autoencoder"}))
    with pytest.raises(CheckpointError, match="has no config of its autoencoder"):
        load_tokenizer(tmp_path / "saved")
