"""The door for models of other libraries: who claims one, where it is found, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from diffusers import VQModel
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from spectok import ForeignModel, load_tokenizer
from spectok.cli import main
from spectok.errors import CheckpointError, ConfigError, PluginError
from spectok.foreign import claims
from spectok.foreign.claims import claimed, load_class, tokenizers
from spectok.modeling import model_fingerprint
from spectok.plugins import registry
from spectok.testing.small import small_tokenizer

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT = "0" * 40


def make(**options):
    torch.manual_seed(0)
    small = {"block_out_channels": (32, 32), "num_vq_embeddings": 32, "sample_size": 16}
    small |= {"down_block_types": ("DownEncoderBlock2D",) * 2}
    return VQModel(**small | {"up_block_types": ("UpDecoderBlock2D",) * 2} | options).eval()


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a model as diffusers saves it."""
    make().save_pretrained(tmp_path / "vqvae")
    return tmp_path / "vqvae"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def pipeline(folder, kind="AmusedPipeline", **parts):
    """Write the index of a pipeline around its parts."""
    write(folder / "model_index.json", {"_class_name": kind} | parts)


def refusal(place, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        load_tokenizer(place, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# -- what is found ---


def test_the_part_of_a_pipeline_is_found(folder):
    pipeline(
        folder.parent,
        vqvae=["diffusers", "VQModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        transformer=["diffusers", "UVit2DModel"],
    )
    write(folder.parent / "transformer" / "config.json", {"sample_size": 12})
    whole, part = load_tokenizer(folder.parent), load_tokenizer(folder)
    named = load_tokenizer(folder.parent, subfolder="vqvae")
    for found in (whole, part, named):
        assert found.image_shape == (3, 24, 24)  # as the pipeline draws: sample_size times factor
        assert found.config["image_mean"] == (0.0,)  # aMUSEd's images are in [0, 1]
    assert load_tokenizer(folder, image_size=16).image_shape == (3, 16, 16)


def test_a_pipeline_of_spectok_is_one_too(tmp_path):
    tokenizer = small_tokenizer("vqvae")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipeline(tmp_path, "TokenPipeline", tokenizer=["spectok_vq.model", "VQVAE"])
    images = IMAGES[:, :1]
    assert torch.equal(load_tokenizer(tmp_path).encode(images), tokenizer.encode(images))


def test_variants_and_shards_are_read(folder):
    wanted = load_tokenizer(folder).state_dict()
    (folder / WEIGHTS).unlink()
    make().save_pretrained(folder, variant="fp16", max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = load_tokenizer(folder, variant="fp16").state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_earlier_names_of_attention_are_read(folder):
    model, weights = load_tokenizer(folder), load_file(folder / WEIGHTS)
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for now, before in renamed.items():
        for name in [name for name in weights if f".{now}." in name]:
            weights[name.replace(f".{now}.", f".{before}.")] = weights.pop(name)
    save_file(weights, folder / WEIGHTS)
    assert any(".query." in name for name in weights)
    assert torch.equal(load_tokenizer(folder).encode(IMAGES), model.encode(IMAGES))


@pytest.fixture
def cache(folder, tmp_path):
    """Return a cache of the hub that holds a pipeline, as a download leaves it."""
    root = tmp_path / "cache" / "models--someone--pipeline"
    shutil.copytree(folder, root / "snapshots" / COMMIT / "vqvae")
    pipeline(root / "snapshots" / COMMIT, vqvae=["diffusers", "VQModel"])
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


def test_a_hub_id_is_read_from_the_cache(folder, cache):
    found = load_tokenizer("someone/pipeline", cache_dir=cache)
    again = load_tokenizer("someone/pipeline", cache_dir=cache, subfolder="vqvae")
    wanted = load_tokenizer(folder).state_dict()
    for model in (found, again):
        assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)


def test_only_what_loading_needs_is_fetched(folder, tmp_path, monkeypatch):
    root = folder.parent
    pipeline(root, "VQDiffusionPipeline", vqvae=["diffusers", "VQModel"])
    write(root / "unet" / "config.json", {"sample_size": 8})
    for unneeded in ("unet/" + WEIGHTS, "vqvae/other.safetensors", "vqvae/evil.py"):
        (root / unneeded).write_bytes(b"")

    def fetch(name, allow_patterns, revision):
        assert (name, revision) == ("user/model", "v1")
        files = [p.relative_to(root) for p in root.rglob("*.*") if "fetched" not in p.parts]
        for path in filter_repo_objects(map(str, files), allow_patterns=allow_patterns):
            (tmp_path / "fetched" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, tmp_path / "fetched" / path)
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_tokenizer("user/model", revision="v1").image_shape == (3, 16, 16)
    found = {path.name for path in (tmp_path / "fetched").rglob("*.*")}
    assert found == {"config.json", "model_index.json", WEIGHTS}
    assert not (tmp_path / "fetched" / "unet" / WEIGHTS).exists()


# -- who claims ---


def test_two_plugins_that_claim_one_model_are_named(folder, monkeypatch):
    kinds = registry.list_registered("foreign_model")
    both = {name: kinds["vqmodel"] for name in ("vqmodel", "janus")}
    monkeypatch.setattr(claims, "foreign_models", lambda: both)
    message = refusal(folder, PluginError)
    assert "claimed by 'janus' of spectok" in message
    assert "'vqmodel' of spectok" in message


def test_files_claim_only_where_no_class_is_named():
    kind = ForeignModel("m:C", "a kind", file_names=("vq_ds16_*.safetensors",))
    assert kind.claims({}, ["readme.md", "vq_ds16_c2i.safetensors"])
    assert not kind.claims({}, ["model.safetensors"])
    assert not kind.claims({"model_type": "other"}, ["vq_ds16_c2i.safetensors"])
    assert claimed({}, ["model.safetensors"], "here") is None


@pytest.mark.parametrize(
    "target", ["spectok_nowhere:C", "spectok_vq.model:Nothing", "spectok_vq.model:VQVAE", "x"]
)
def test_a_plugin_that_names_no_such_class_is_told(target):
    with pytest.raises(PluginError, match="a kind"):
        load_class(ForeignModel(target, "a kind"))


def test_every_registered_kind_names_a_class_that_exists():
    for kind in tokenizers():
        assert load_class(kind).__name__ == kind.class_name


# -- what is refused ---


def test_a_class_that_nobody_claims_names_the_plugins_that_could(folder):
    config = json.loads((folder / "config.json").read_text())
    for key, article, value in (("_class_name", "an", "Oobleck"), ("model_type", "a", "bert")):
        rest = {k: v for k, v in config.items() if k != "_class_name"}
        write(folder / "config.json", rest | {key: value})
        message = refusal(folder)
        assert f"holds {article} {value}, which no installed plugin provides" in message
        own, _, others = message.partition("of other libraries: ")
        assert "VQVAE" in own
        assert "AutoencoderVidTok of diffusers (FSQ), " in others


def test_an_autoencoder_without_codes_is_told_what_takes_it(folder, tmp_path):
    write(folder / "config.json", {"_class_name": "AutoencoderTiny"})
    use = f"spectok train latentvq --data DATA tokenizer.autoencoder={folder}"
    for asked in (folder, tmp_path):
        pipeline(tmp_path, unet=["diffusers", "UNet2DModel"], vqvae=["diffusers", "AutoencoderKL"])
        message = refusal(asked)
        assert f"{folder} is no tokenizer: an autoencoder without codes; {use} trains" in message


def test_missing_weights_and_pickles_are_refused(folder):
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    assert f"it has no {WEIGHTS}, and pickles are not read" in refusal(folder)


def test_the_card_of_a_pipelines_tokenizer_lies_beside_it(folder, tmp_path):
    pipeline(tmp_path, vqvae=["diffusers", "VQModel"])
    measured = ["--data", "shapes", "--limit", "4", "--card"]
    for more in (measured, ["--verify"]):
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(tmp_path), *more])
        assert ended.value.code == 0
        assert (folder / "README.md").is_file()
        assert not (tmp_path / "README.md").exists()


def test_the_only_variant_of_weights_is_taken_and_said(folder, capsys):
    given, variant = load_tokenizer(folder), folder / "diffusion_pytorch_model.fp16.safetensors"
    (folder / WEIGHTS).rename(variant)
    capsys.readouterr()
    assert model_fingerprint(load_tokenizer(folder)) == model_fingerprint(given)
    assert "there are no other weights than of the variant fp16" in capsys.readouterr().err
    shutil.copy(variant, folder / "diffusion_pytorch_model.bf16.safetensors")
    assert "it has the variant bf16: give variant='bf16'" in refusal(folder)


def test_a_wrong_subfolder_is_told_what_there_is(folder):
    for wrong in ("vae", "vqvae/x"):
        assert f"has no folder {wrong}; its folders: vqvae" in refusal(
            folder.parent, subfolder=wrong
        )
    for outside in ("../x", "/etc"):
        assert "is not inside" in refusal(folder.parent, subfolder=outside)


def test_a_pipeline_without_a_tokenizer_lists_its_parts(tmp_path, folder):
    pipeline(tmp_path, unet=["diffusers", "UNet2DModel"], other=[None, None])
    assert "is a pipeline without a tokenizer of images: it has unet (UNet2DModel)" in refusal(
        tmp_path
    )
    pipeline(tmp_path, vqvae=["diffusers", "VQModel"], second=["diffusers", "VQModel"])
    assert "several tokenizers: vqvae, second; choose one with subfolder=" in refusal(tmp_path)
    pipeline(tmp_path, **{"../vqvae": ["diffusers", "VQModel"]})
    assert "is not inside" in refusal(tmp_path)


def test_a_hub_id_without_a_copy_names_where_one_may_be(tmp_path):
    message = refusal("someone/nothing", cache_dir=tmp_path)
    assert "cannot fetch 'someone/nothing'" in message
    assert str(tmp_path / "models--someone--nothing") in message


def test_a_hub_id_that_is_no_tokenizer_says_what_it_is(cache):
    root = cache / "models--someone--pipeline" / "snapshots" / COMMIT
    write(root / "config.json", {"model_type": "bert"})
    message = refusal("someone/pipeline", cache_dir=cache)
    assert "someone/pipeline holds a bert, which no installed plugin provides" in message


def test_weights_that_do_not_fit_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    first = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != first}, folder / WEIGHTS)
    assert "missing keys (1)" in refusal(folder)
    save_file(weights | {"extra": torch.zeros(2)}, folder / WEIGHTS)
    assert "unexpected keys (1): extra" in refusal(folder)
    save_file(weights | {first: weights[first] * torch.nan}, folder / WEIGHTS)
    assert "not finite" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers_per_block": 10**9}, "over 1,048,576"),
        ({"layers_per_block": 10**5}, "far larger than its weights"),
        ({"block_out_channels": 3}, "describes no model"),
        ({"norm_num_groups": 0}, "network: not one of VQModel"),
        ({"down_block_types": ["Nothing"] * 2}, "network: not one of VQModel"),
        ({"latent_channels": 5}, "mismatched keys"),
        ({"new_option": 1}, "does not take: new_option; update diffusers"),
        ({"in_channels": 10**8}, "over 1,048,576"),
    ],
)
def test_a_config_is_not_believed(folder, change, reason):
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | change)
    assert reason in refusal(folder)


def test_options_that_do_not_apply_are_refused(folder):
    assert "is no device: a model stays on one" in refusal(folder, ConfigError, device_map="auto")
    assert "cannot be set on a trained model" in refusal(folder, ConfigError, channels=3)
    for size in (15, 0, -2, 10**6):
        assert f"image_size {size} is no multiple of 2" in refusal(
            folder, ConfigError, image_size=size
        )
    for size in ("16", 16.0, True):
        assert "is no whole number" in refusal(folder, ConfigError, image_size=size)


# -- commands ---


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code, capsys.readouterr()


def test_commands_work_on_a_folder_that_spectok_did_not_write(folder, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (20, 30), (200, 30, 90)).save(tmp_path / "a.png")
    code, shown = run(capsys, "info", folder)
    assert code == 0
    assert "PretrainedVQModel" in shown.out
    for words in (
        ("encode", folder, tmp_path / "a.png", "--out", tmp_path / "a.npz"),
        ("decode", folder, tmp_path / "a.npz", "--out", tmp_path / "decoded"),
        ("reconstruct", folder, tmp_path / "a.png", "--out", tmp_path / "grid.png"),
        ("eval", folder, "--data", "shapes", "--limit", 8),
        ("doctor", folder),
    ):
        code, shown = run(capsys, *words)
        assert code == 0, (words, shown.err)
    assert (tmp_path / "decoded" / "a.png").is_file()


def test_commands_refuse_in_one_line(folder, capsys):
    write(folder / "config.json", {"model_type": "bert"})
    code, shown = run(capsys, "info", folder)
    assert code == 2
    assert len(shown.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_every_command_takes_a_folder_inside_the_model(folder, tmp_path, capsys):
    from PIL import Image

    root, picture = folder.parent, tmp_path / "a.png"
    shutil.copytree(folder, root / "second")
    pipeline(root, vqvae=["diffusers", "VQModel"], second=["diffusers", "VQModel"])
    Image.new("RGB", (20, 30), (200, 30, 90)).save(picture)
    for words in (
        ("info", root),
        ("encode", root, picture, "--out", tmp_path / "a.json"),
        ("decode", root, tmp_path / "a.json", "--out", tmp_path / "decoded"),
        ("reconstruct", root, picture, "--out", tmp_path / "grid.png"),
        ("changes", root, picture, picture),
        ("eval", root, "--data", "shapes", "--limit", 8, "--out", tmp_path / "result.json"),
        ("doctor", root),
    ):
        code, shown = run(capsys, *words, "--subfolder", "second")
        assert code == 0, (words, shown.err)
        if words[0] in ("info", "encode", "decode", "reconstruct"):
            assert f"{root} --subfolder second" in shown.out.rpartition("next: ")[2]
        for arguments, reason in (
            ((), "with several tokenizers: vqvae, second"),
            (("--subfolder", "vae"), "has no folder vae; its folders: "),
            (("--subfolder", "../vae"), "is not inside"),
        ):
            code, shown = run(capsys, *words, *arguments)
            assert code == 2
            assert reason in shown.err
            assert len(shown.err.strip().splitlines()) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == str(root / "second")


def test_a_subfolder_is_inside_a_run_and_has_a_card_of_its_own(folder, tmp_path, capsys):
    run_folder = tmp_path / "run"
    shutil.move(folder, run_folder / "model")
    shutil.copytree(run_folder / "model", run_folder / "other")
    for inside in ("model", "other"):
        assert load_tokenizer(run_folder, subfolder=inside).image_shape == (3, 16, 16)
    data = ("--subfolder", "other", "--data", "shapes", "--limit", 8)
    assert run(capsys, "eval", run_folder, *data, "--card")[0] == 0
    assert (run_folder / "other" / "README.md").is_file()
    assert not (run_folder / "model" / "README.md").exists()
    assert run(capsys, "eval", run_folder, "--subfolder", "other", "--verify")[0] == 0


def test_data_are_resized_as_the_checkpoint_wants(folder, tmp_path, capsys):
    from PIL import Image

    from spectok.data import config_for_path
    from spectok.data.files import load_image
    from spectok.evaluation.resizing import dataset_for

    noise = torch.randint(0, 256, (4, 37, 53, 3), generator=torch.Generator().manual_seed(0))
    for number, pixels in enumerate(noise.to(torch.uint8).numpy()):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.resize_filter == "lanczos"
    config = config_for_path(tmp_path / "images", image_size=16, num_held_out=0)
    found, used = dataset_for(tokenizer, config)
    assert found.preprocessing["filter"] == used.resize_filter == "lanczos"
    for number in range(4):
        file = tmp_path / "images" / found.name_of(number)
        alone = load_image(file, tokenizer.image_shape, tokenizer.resize_filter)
        assert torch.equal(found[number]["images"], alone)
        assert torch.equal(tokenizer.processor(Image.open(file))[0], alone)
    told = config.model_copy(update={"resize_filter": "nearest"})
    assert dataset_for(tokenizer, told)[0].preprocessing["filter"] == "nearest"
    own = dataset_for(small_tokenizer("vqvae", in_channels=3), config)
    assert own[1] is config
    assert own[0].preprocessing["filter"] == "bicubic"

    def protocol(*words):
        out = tmp_path / "result.json"
        code, shown = run(capsys, "eval", folder, *words, "--split", "train", "--out", out)
        assert code == 0, shown.err
        return json.loads(out.read_text())

    images = ("--data", tmp_path / "images", "num_held_out=0")
    measured, other = protocol(*images), protocol(*images, "resize_filter=nearest")
    assert measured["protocol"]["preprocessing"]["filter"] == "lanczos"
    assert measured["data"]["resize_filter"] == "lanczos"
    assert other["protocol"]["preprocessing"]["filter"] == "nearest"
    assert measured["protocol"]["id"] != other["protocol"]["id"]
    assert measured["metrics"] != other["metrics"]
    plain = protocol("--data", "shapes", "--limit", 4)  # drawn at the model's size: nothing resized
    assert plain["protocol"]["preprocessing"]["filter"] == "bicubic"
    assert "resize_filter" not in plain["data"]
    again = ("eval", "--verify", tmp_path / "result.json", "--data", "shapes")
    assert run(capsys, *again)[0] == 0


def test_an_image_smaller_than_a_token_is_named(folder, tmp_path, capsys):
    from PIL import Image

    for name, size in (("a", (20, 12)), ("b", (1, 1))):
        Image.new("RGB", size, (200, 30, 90)).save(tmp_path / f"{name}.png")
    images = (tmp_path / "a.png", tmp_path / "b.png", "--out")
    for words in (
        ("reconstruct", folder, *images, tmp_path / "grid.png", "--original"),
        ("encode", folder, *images, tmp_path / "t.npz", "--tile", 8),
    ):
        code, shown = run(capsys, *words)
        assert code == 2
        assert f"image {tmp_path / 'b.png'}: images of 1×1 pixels are smaller than" in shown.err
    assert (
        run(capsys, "reconstruct", folder, images[0], "--out", tmp_path / "grid.png", "--original")[
            0
        ]
        == 0
    )


def test_types_are_given_by_name(folder):
    for model in (load_tokenizer(folder), small_tokenizer("vqvae").eval()):
        for name in ("bfloat16", "torch.bfloat16"):
            moved = model.to(name)
            assert moved.dtype == torch.bfloat16
            assert moved.code_tables[0].dtype == torch.float32
        assert model.to(dtype="float32").dtype == torch.float32
        assert model.to("cpu", "bfloat16").dtype == torch.bfloat16


def test_a_misspelt_trained_model_is_told_the_closest_first(tmp_path):
    message = refusal("hrvqva/cifar10", cache_dir=tmp_path)
    assert message.startswith(
        "'hrvqva/cifar10' is no trained model that is installed (did you mean 'hrvqvae/cifar10'?)"
    )
