"""Pipelines: one folder that draws what the run drew, and what is refused."""

import contextlib
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file

import spectok_generation
from spectok import load_tokenizer
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.images import enlarge, save_grid, to_pil
from spectok.testing.small import small_tokenizer
from spectok_generation import TokenPipeline, create_prior, draw_images, load_text_encoder
from spectok_generation.conditions import TextFeatures
from spectok_generation.drawing import make_options
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.records import tokenizer_record
from spectok_generation.text.clip import model_config
from spectok_generation.text.clip_recipe import ClipConfig
from spectok_generation.text.encoder import TextEncoder

CLIP = model_config(
    ClipConfig(
        embed_dim=12,
        patch_size=16,
        image_layers=1,
        image_width=16,
        text_layers=1,
        text_width=16,
        head_width=8,
        context_length=8,
    ),
    (3, 32, 32),
)
SMALL = {"num_layers": 1, "num_heads": 2, "width": 16}
LDM = {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 40}
PRIORS = {  # name and options of a prior, and what an image is drawn with
    "gpt": (
        "gpt",
        SMALL | {"num_classes": 3, "condition_dropout": 0.1},
        {"top_k": 5, "guidance": 2.0},
    ),
    "pixelcnn": ("pixelcnn", {"num_layers": 2, "width": 8}, {"temperature": 0.9}),
    "maskgit": (
        "maskgit",
        SMALL | {"num_classes": 3, "condition_dropout": 0.1},
        {"num_steps": 4, "choice_temperature": 1.0, "guidance": 2.0},
    ),
    "maskgit, text": ("maskgit", SMALL | {"condition_dropout": 0.1}, {"top_k": 5}),
    "cat": ("cat", SMALL | {"condition_dropout": 0.1}, {"top_p": 0.9}),
    "ldm": ("ldm", LDM | {"num_classes": 3, "condition_dropout": 0.1}, {"num_steps": 4}),
    "ldm, text": ("ldm", LDM | {"condition_dropout": 0.1}, {"num_steps": 2, "guidance": 1.5}),
}
PROMPTS = ["a large red circle", "a ring"]


@pytest.fixture(scope="module")
def runs(save_small_clip, tmp_path_factory):
    """Return the folders of a tokenizer and of a CLIP with random weights."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(1)
    small_tokenizer("vqvae", in_channels=3).save_pretrained(folder / "tokenizer")
    save_small_clip(folder / "clip" / "model", CLIP)
    return folder


@pytest.fixture(scope="module")
def make_run(runs):
    """Save a prior with random weights as a run does; returns its folder."""

    def make(kind):
        folder = runs / kind
        if folder.is_dir():
            return folder
        name, options, _ = PRIORS[kind]
        if reads_text(kind):
            options = options | {"text": load_text_encoder(str(runs / "clip")).record}
        where = str(runs / "tokenizer")
        tokenizer = load_tokenizer(where)
        record = tokenizer_record(tokenizer, where)
        torch.manual_seed(2)
        prior = create_prior(name, tokenizer.token_spec, tokenizer=record, **options)
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        prior.save_pretrained(folder / "model")
        return folder

    return make


@pytest.fixture
def saved(make_run, tmp_path):
    """Return the folder of a pipeline that may be damaged."""
    TokenPipeline.from_run(make_run("cat")).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def reads_text(kind):
    return kind in ("cat", "ldm, text", "maskgit, text")


def draw(pipeline, kind, **more):
    """Draw four images with a condition that the kind of prior takes."""
    given = {"prompt": PROMPTS} if reads_text(kind) else {}
    if kind in ("gpt", "ldm", "maskgit"):
        given = {"class_labels": [2, 0]}
    pipeline.set_progress_bar_config(disable=True)
    wishes = {"num_images": 4, "seed": 5, "output_type": "pt"} | PRIORS[kind][2] | more
    return pipeline(**given, **wishes).images


def files_of(folder):
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(found)


def refusal(error, function, *arguments, **options):
    """Return what a call is refused with, which must be one line."""
    with pytest.raises(error) as found:
        function(*arguments, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


# -- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRIORS)
def test_saved_and_loaded_it_draws_what_the_run_draws(make_run, kind, tmp_path):
    run = make_run(kind)
    pipeline = TokenPipeline.from_run(run)
    assert isinstance(pipeline, DiffusionPipeline)
    images = draw(pipeline, kind)
    pipeline.save_pretrained(tmp_path / "pipe")
    loaded = TokenPipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(draw(loaded, kind), images)
    assert not loaded.prior.training
    assert not loaded.tokenizer.training
    assert images.std() > 0.01

    prior, tokenizer = load_pair(run)
    condition = torch.tensor([2, 0, 2, 0]) if prior.num_classes else None
    if reads_text(kind):
        condition = load_encoder(prior, run)(PROMPTS)[[0, 1, 0, 1]]
    wishes = {"guidance": 3.0 if reads_text(kind) else 1.0} | PRIORS[kind][2]
    options = make_options(prior, wishes)
    assert torch.equal(draw_images(prior, tokenizer, 4, condition, seed=5, options=options), images)


def test_the_folder_is_a_pipeline_of_diffusers(make_run, tmp_path):
    TokenPipeline.from_run(make_run("gpt")).save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": "TokenPipeline",
        "prior": ["spectok_generation.priors.gpt", "GPT"],
        "text_encoder": [None, None],
        "tokenizer": ["spectok_vq.model", "VQVAE"],
    }
    weights = "diffusion_pytorch_model.safetensors"
    expected = [f"{part}/{name}" for part in ("prior", "tokenizer") for name in ("config.json",)]
    expected += ["model_index.json", f"prior/{weights}", f"tokenizer/{weights}"]
    expected += ["tokenizer/preprocessor_config.json"]
    assert files_of(tmp_path / "pipe") == sorted(expected)
    assert DiffusionPipeline.load_config(tmp_path / "pipe")["prior"] == index["prior"]
    pipeline = TokenPipeline.from_pretrained(tmp_path / "pipe")
    assert set(pipeline.components) == {"tokenizer", "prior", "text_encoder"}
    again = TokenPipeline(**pipeline.components)
    assert again.config["prior"] == ("spectok_generation.priors.gpt", "GPT")
    assert (again.prior, again.text_encoder) == (pipeline.prior, None)


def test_the_folder_names_no_place_of_this_machine(saved, runs):
    texts = [path.read_text() for path in saved.rglob("*.json")]
    assert len(texts) > 3
    assert not [text for text in texts if str(runs) in text or str(saved) in text]
    again = TokenPipeline.from_pretrained(saved)
    assert again.prior.tokenizer_record["path"] is None
    with pytest.raises(CheckpointError, match="the encoder it was trained with"):
        TokenPipeline.from_pretrained(saved, text_encoder=other_encoder(again.text_encoder))


def other_encoder(encoder):
    """Return an encoder with other weights."""
    other = load_text_encoder(encoder.name)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    return other


def test_conditions_are_taken_in_turn(make_run):
    pipeline = TokenPipeline.from_run(make_run("gpt"))
    pipeline.set_progress_bar_config(disable=True)
    options = {"seed": 1, "output_type": "pt"}
    every = pipeline(num_images=4, **options).images
    for count, given in [
        (4, {"class_labels": [0, 1, 2, 0]}),
        (4, {"class_labels": [0, 1, 2], "num_images": 4}),
        (3, {"class_labels": torch.tensor([0, 1, 2])}),
        (1, {"class_labels": 0}),
        (4, {"num_images": 4, "batch_size": 3}),
        (1, {}),
    ]:
        images = pipeline(**given, **options).images
        assert len(images) == count
        torch.testing.assert_close(images, every[:count], rtol=0, atol=1e-4)
    pictures = pipeline(num_images=4, seed=1).images
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert [picture.tobytes() for picture in pictures] == [to_pil(i).tobytes() for i in every]


@pytest.mark.parametrize("kind", ["gpt", "ldm"])
def test_it_is_called_like_a_pipeline_of_diffusers(make_run, kind):
    pipeline = TokenPipeline.from_run(make_run(kind))
    pipeline.set_progress_bar_config(disable=True)
    options = {"output_type": "pt"} | ({"num_steps": 2} if kind == "ldm" else {})
    four = pipeline(class_labels=[0, 0, 2, 2], seed=5, **options).images
    each = pipeline(class_labels=[0, 2], num_images_per_prompt=2, seed=5, **options).images
    assert torch.equal(each, four)

    one = pipeline(class_labels=0, generator=torch.Generator().manual_seed(3), **options).images
    other = torch.Generator().manual_seed(4)
    both = [torch.Generator().manual_seed(3), other]
    pair = pipeline(class_labels=[0, 0], generator=both, **options).images
    torch.testing.assert_close(pair[:1], one, rtol=0, atol=1e-4)
    assert not torch.allclose(pair[1], pair[0], atol=1e-3)
    moved_on = pipeline(class_labels=0, generator=other, **options).images
    assert not torch.allclose(moved_on[0], pair[1], atol=1e-3)

    options["output_type"] = "np"
    array = pipeline(class_labels=[0, 0, 2, 2], seed=5, **options).images
    shown = (four / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert (array.dtype, array.shape) == (np.float32, tuple(shown.shape))
    torch.testing.assert_close(torch.from_numpy(array), shown)


def test_a_refused_call_leaves_generators_where_they_were(make_run):
    pipeline = TokenPipeline.from_run(make_run("gpt"))
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert "1 generators for 2" in refusal(
        InputError, pipeline, class_labels=[0, 1], generator=[generator]
    )
    assert torch.equal(generator.get_state(), before)


def test_it_is_loaded_onto_one_device(saved):
    pipeline = TokenPipeline.from_pretrained(saved, device_map="meta", dtype="bfloat16")
    assert {part.device.type for part in pipeline.components.values()} == {"meta"}
    assert pipeline.tokenizer.dtype == torch.bfloat16


def test_it_moves(make_run):
    pipeline = TokenPipeline.from_run(make_run("cat"))
    images = draw(pipeline, "cat")
    assert torch.equal(draw(pipeline.to("cpu"), "cat"), images)
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.float32)
    assert {part.device.type for part in pipeline.to("meta").components.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", PRIORS)
def test_it_draws_on_a_gpu(make_run, kind):
    pipeline = TokenPipeline.from_run(make_run(kind)).to("cuda")
    images = draw(pipeline, kind)
    assert {part.device.type for part in pipeline.components.values() if part} == {"cuda"}
    assert (images.shape, images.device.type) == ((4, *pipeline.tokenizer.image_shape), "cpu")
    assert images.isfinite().all()


def test_a_long_prompt_is_cut_with_a_warning(make_run):
    pipeline = TokenPipeline.from_run(make_run("cat"))
    pipeline.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="a prompt of 22 tokens is cut off after 8"):
        pipeline("red " * 20)


# -- classes of other packages ---------------------------------------------------------------------

MODULE = '''
"""A tokenizer and a prior that no plugin registers."""
from spectok_generation.priors.gpt import GPT
from spectok_vq.model import VQVAE

class LabVQVAE(VQVAE):
    """A tokenizer."""

class LabGPT(GPT):
    """A prior."""
'''


def test_classes_of_other_packages_load_while_they_are_installed(tmp_path, monkeypatch):
    package = tmp_path / "site" / "lab" / "ddpm"  # the name of a folder of diffusers' pipelines
    package.mkdir(parents=True)
    for name, content in [("../__init__", ""), ("__init__", ""), ("model", MODULE)]:
        (package / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    from lab.ddpm.model import LabGPT, LabVQVAE

    tokenizer = LabVQVAE(image_size=16, channels=8, residual_channels=4)
    spec = tokenizer.token_spec.to_dict()
    prior = LabGPT(token_spec=spec, tokenizer=tokenizer_record(tokenizer), **SMALL)
    pipeline, folder = TokenPipeline(tokenizer, prior), tmp_path / "pipe"
    pipeline.save_pretrained(folder)
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, folder)
    assert "no installed plugin registers the tokenizer lab.ddpm.model.LabVQVAE" in message
    loaded = TokenPipeline.from_pretrained(folder, trust=True)
    assert (type(loaded.tokenizer), type(loaded.prior)) == (LabVQVAE, LabGPT)
    loaded.set_progress_bar_config(disable=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(output_type="pt").images
    assert torch.equal(loaded(output_type="pt").images, images)
    assert torch.equal(
        draw_images(*load_pair(folder, trust=True), 1), images
    )  # as the commands load it

    for module in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        monkeypatch.delitem(sys.modules, module)
    (package / "model.py").unlink()
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, folder, trust=True)
    assert "the tokenizer lab.ddpm.model.LabVQVAE cannot be found" in message
    assert "install the package" in message


EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize(
    "index",
    [
        {"prior": ["evilmod", "X"]},
        {"tokenizer": ["evilmod", "VQ"]},
        {"prior": ["evilmod", "X"], "_class_name": ["evilmod", "X"]},
        {"scheduler": ["evilmod", "X"]},
        {"_class_name": "evilmod", "custom_pipeline": "evilmod", "auto_map": {"X": "evilmod.X"}},
    ],
)
def test_nothing_that_a_folder_names_is_imported(saved, index, monkeypatch):
    for name in ("evilmod", "evilmod_text", "pipeline", "tokenizer/evilmod", "prior/evilmod"):
        (saved / f"{name}.py").write_text(EVIL)
    path = saved / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    monkeypatch.syspath_prepend(saved)
    monkeypatch.chdir(saved)
    with contextlib.suppress(CheckpointError):
        TokenPipeline.from_pretrained(saved)
    with contextlib.suppress(Exception):  # diffusers knows no such pipeline
        DiffusionPipeline.from_pretrained(saved)
    assert "evilmod" not in sys.modules
    assert not list(saved.rglob("ran"))


@pytest.mark.parametrize("key", ["trust_remote_code", "tokenizer_file"])
def test_a_text_encoder_cannot_ask_for_code(saved, key):
    folder = saved / "text_encoder"
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {key: True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "evilmod.py").write_text(EVIL)
    table = {"auto_map": {"AutoTokenizer": ["evilmod.X", None]}, "tokenizer_class": "X"}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, saved)
    assert f"asks for a tokenizer with {key}, which may run code" in message
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refusal(CheckpointError, TokenPipeline.from_pretrained, saved)
    assert not list(saved.rglob("ran"))


def test_a_class_that_moved_is_found_by_its_name(saved):
    index = json.loads((saved / "model_index.json").read_text())
    index["tokenizer"][0] = "spectok_vq.an_older_module"
    (saved / "model_index.json").write_text(json.dumps(index))
    assert type(TokenPipeline.from_pretrained(saved).tokenizer).__name__ == "VQVAE"
    index["tokenizer"] = ["pathlib", "Path"]
    (saved / "model_index.json").write_text(json.dumps(index))
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, saved, trust=True)
    assert "pathlib.Path is not a tokenizer" in message


# -- text encoders ---------------------------------------------------------------------------------


def same_encoder(encoder, folder):
    """Save and load an encoder; it must be the same, made of safetensors and JSON alone."""
    encoder.save_pretrained(folder)
    assert {Path(name).suffix for name in files_of(folder)} <= {".json", ".safetensors"}
    loaded = load_text_encoder(str(folder))
    assert loaded.fingerprint == encoder.fingerprint
    expected, found = encoder(PROMPTS), loaded(PROMPTS)
    assert isinstance(found, TextFeatures)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.mask, expected.mask)
    return loaded


def test_an_encoder_of_each_origin_survives(runs, tmp_path):
    fitted = load_text_encoder(str(runs / "clip"))
    loaded = same_encoder(fitted, tmp_path / "fitted")
    same_encoder(loaded, tmp_path / "again")  # what was saved can be saved
    size = (tmp_path / "fitted" / "open_clip_text.safetensors").stat().st_size
    assert size < (runs / "clip" / "model" / "open_clip_model.safetensors").stat().st_size

    for name, changes in [
        ("tiny-quick", {"quick_gelu": True}),
        ("tiny-custom", {"custom_text": True, "init_logit_bias": -10.0}),
        ("tiny-clean", {"text_cfg": CLIP["text_cfg"] | {"tokenizer_kwargs": CANONICAL}}),
    ]:
        config = tmp_path / f"{name}.json"
        config.write_text(json.dumps(CLIP | changes))
        open_clip.add_model_config(config)
        torch.manual_seed(3)
        state = open_clip.create_model(name).state_dict()
        save_file(state, tmp_path / f"{name}.safetensors")
        named = load_text_encoder(name, str(tmp_path / f"{name}.safetensors"))
        same_encoder(named, tmp_path / name)
    assert torch.equal(named(["A ring!"]).features, named(["a ring"]).features)


CANONICAL = {"clean": "canonicalize"}


def test_a_tokenizer_from_transformers_survives(runs, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "ring": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / "hf")
    text = CLIP["text_cfg"] | {"hf_tokenizer_name": "not/on-this-machine"}
    content = {"model_cfg": CLIP | {"text_cfg": text}}
    (tmp_path / "hf" / "open_clip_config.json").write_text(json.dumps(content))
    weights = "open_clip_model.safetensors"
    save_file(load_file(runs / "clip" / "model" / weights), tmp_path / "hf" / weights)
    encoder = load_text_encoder(str(tmp_path / "hf"))
    shutil.rmtree(tmp_path / "hf")
    loaded = same_encoder(encoder, tmp_path / "saved")
    assert loaded(["a red ring", "red"]).mask.sum(1).tolist() == [3, 1]


def test_an_encoder_that_cannot_be_built_again_is_not_saved(runs, tmp_path):
    model, tokenizer = open_clip.CLIP(**CLIP), open_clip.SimpleTokenizer(context_length=8)
    unknown = TextEncoder(model, tokenizer, "a test")
    assert "config is unknown" in refusal(CheckpointError, unknown.save_pretrained, tmp_path)
    other = TextEncoder(model, lambda prompts, context_length: None, "a test", config=CLIP)
    assert "has a function, which" in refusal(CheckpointError, other.save_pretrained, tmp_path)
    cast = load_text_encoder(str(runs / "clip")).to(torch.bfloat16)
    assert "cast to torch.bfloat16" in refusal(CheckpointError, cast.save_pretrained, tmp_path)
    assert not files_of(tmp_path)


# -- saving ----------------------------------------------------------------------------------------


def test_a_pipeline_replaces_another_and_nothing_else(saved, make_run, tmp_path):
    (saved / "README.md").write_text("mine")
    pipeline = TokenPipeline.from_run(make_run("gpt"))
    pipeline.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"
    assert not (saved / "text_encoder").exists()
    assert torch.equal(draw(TokenPipeline.from_pretrained(saved), "gpt"), draw(pipeline, "gpt"))
    (tmp_path / "run" / "tokenizer" / "model").mkdir(parents=True)
    message = refusal(CheckpointError, pipeline.save_pretrained, tmp_path / "run")
    assert "holds a tokenizer of something else; give a new folder" in message
    assert "holds a model of" in refusal(CheckpointError, pipeline.save_pretrained, make_run("gpt"))
    assert "is a file" in refusal(CheckpointError, pipeline.save_pretrained, saved / "README.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "run"]


def test_a_save_that_fails_leaves_the_earlier_pipeline(saved, make_run, monkeypatch):
    before = {name: (saved / name).read_bytes() for name in files_of(saved)}
    pipeline = TokenPipeline.from_run(make_run("cat"), text_encoder=str(saved / "text_encoder"))
    write = Path.write_text

    def fail(path, *arguments, **options):
        if path.name == "model_index.json":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    assert "No space left" in refusal(CheckpointError, pipeline.save_pretrained, saved)
    assert {name: (saved / name).read_bytes() for name in files_of(saved)} == before
    assert [path.name for path in saved.parent.iterdir()] == ["pipe"]


def test_what_does_not_go_with_saving(saved, tmp_path):
    pipeline = TokenPipeline.from_pretrained(saved)
    for options in ({"safe_serialization": False}, {"push_to_hub": True}, {"variant": "fp16"}):
        message = refusal(ConfigError, pipeline.save_pretrained, tmp_path / "p", **options)
        assert "a pipeline cannot be saved with" in message
    pipeline.to(torch.bfloat16)
    message = refusal(InputError, pipeline.save_pretrained, tmp_path / "p")
    assert "was cast to torch.bfloat16" in message
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a ring", num_images=2, output_type="pt").images  # all three parts in 16 bits
    assert torch.as_tensor(drawn).isfinite().all()
    assert not (tmp_path / "p").exists()


def test_diffusers_own_loader_does_not_know_the_pipeline(saved):
    with pytest.raises(AttributeError, match="TokenPipeline"):
        DiffusionPipeline.from_pretrained(saved)  # it looks for the class among its own


# -- the hub ---------------------------------------------------------------------------------------


def test_push_to_hub_needs_the_network(saved):
    pipeline = TokenPipeline.from_pretrained(saved)
    with pytest.raises(OfflineModeIsEnabled, match="offline mode is enabled"):
        pipeline.push_to_hub("user/name")
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, "user/name")
    assert "cannot fetch 'user/name'" in message


def test_push_to_hub_uploads_all_that_loading_needs(saved, tmp_path, monkeypatch):
    uploaded, hub = {}, tmp_path / "hub"

    class Repository:
        repo_id = "user/name"

    def upload(*, repo_id, folder_path, **options):
        uploaded["to"] = repo_id
        shutil.copytree(folder_path, hub)

    def download(repo_id, *, allow_patterns, **options):
        assert (repo_id, options) == ("user/name", {"revision": "main"})
        kept = tmp_path / "cache"
        for name in filter_repo_objects(files_of(hub), allow_patterns=allow_patterns):
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / name, kept / name)
        return str(kept)

    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda *_, **__: Repository())
    monkeypatch.setattr("diffusers.utils.hub_utils.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pipeline = TokenPipeline.from_pretrained(saved)
    pipeline.push_to_hub("user/name")
    assert uploaded["to"] == "user/name"
    assert files_of(hub) == sorted(["README.md", *files_of(saved)])
    assert "text_encoder/open_clip_text.safetensors" in files_of(hub)
    fetched = TokenPipeline.from_pretrained("user/name", revision="main")
    assert torch.equal(draw(fetched, "cat"), draw(pipeline, "cat"))


# -- what is refused -------------------------------------------------------------------------------


def test_parts_that_do_not_belong_together(saved, make_run, runs, tmp_path):
    pipeline = TokenPipeline.from_pretrained(saved)
    tokenizer, prior, encoder = pipeline.tokenizer, pipeline.prior, pipeline.text_encoder
    other = load_tokenizer(runs / "tokenizer")
    next(other.parameters()).data.view(-1)[0] += 1
    assert "give the tokenizer it was" in refusal(CheckpointError, TokenPipeline, other, prior)
    changed = load_text_encoder(str(runs / "clip"))
    next(changed.parameters()).data.view(-1)[0] += 1
    message = refusal(CheckpointError, TokenPipeline, tokenizer, prior, changed)
    assert "give the encoder it was trained with" in message
    assert "reads text; give" in refusal(InputError, TokenPipeline, tokenizer, prior)
    plain = load_pair(make_run("gpt"))[0]
    message = refusal(InputError, TokenPipeline, tokenizer, plain, encoder)
    assert "reads no text; leave the text encoder out" in message
    message = refusal(InputError, TokenPipeline, tokenizer, prior, open_clip.CLIP(**CLIP))
    assert "text_encoder: a CLIP cannot be" in message
    assert "prior: a VQVAE cannot" in refusal(InputError, TokenPipeline, tokenizer, tokenizer)

    message = refusal(CheckpointError, TokenPipeline.from_pretrained, saved, tokenizer=other)
    assert "give the tokenizer it was trained with" in message
    given = TokenPipeline.from_pretrained(saved, tokenizer=tokenizer, text_encoder=encoder)
    assert given.tokenizer is tokenizer
    pipeline.tokenizer = other
    message = refusal(CheckpointError, pipeline.save_pretrained, tmp_path / "p")
    assert "give the tokenizer it was trained with" in message
    changed.save_pretrained(saved / "text_encoder")
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, saved)
    assert "give the encoder it was trained with" in message


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without(name, value=None):
    def edit(folder):
        path = folder / "model_index.json"
        index = json.loads(path.read_text()) | {name: value}
        path.write_text(json.dumps({k: v for k, v in index.items() if v is not None}))

    return edit


TEXT = "open_clip_text.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLIP_CONFIG = "text_encoder/open_clip_config.json"
DAMAGE = {
    "no folder": (shutil.rmtree, "does not exist"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "is not a pipeline (no model_index"),
    "cut index": (lambda f: cut(f / "model_index.json"), "is not valid JSON"),
    "list": (lambda f: (f / "model_index.json").write_text("[1]"), "is not a JSON object"),
    "no entry": (without("prior"), "names no prior; copy or export"),
    "no tokenizer": (without("tokenizer"), "names no tokenizer; copy or export"),
    "no encoder": (without("text_encoder"), "names no text_encoder; copy or export"),
    "null": (without("text_encoder", [None, None]), "names no text_encoder; copy or export"),
    "another class": (without("prior", ["spectok_generation.priors.gpt", "GPT"]), "not GPT"),
    "no prior folder": (lambda f: shutil.rmtree(f / "prior"), "has no folder prior"),
    "no tokenizer folder": (lambda f: shutil.rmtree(f / "tokenizer"), "has no folder tokenizer"),
    "no encoder folder": (lambda f: shutil.rmtree(f / "text_encoder"), "no folder text_encoder"),
    "cut prior": (lambda f: cut(f / "prior" / WEIGHTS), "copy or save it again"),
    "cut tokenizer": (lambda f: cut(f / "tokenizer" / WEIGHTS), "copy or save it again"),
    "cut encoder": (lambda f: cut(f / "text_encoder" / TEXT), "copy or save it again"),
    "no weights": (lambda f: (f / "tokenizer" / WEIGHTS).unlink(), "copy or save it again"),
    "no text weights": (lambda f: (f / "text_encoder" / TEXT).unlink(), f"has no {TEXT}"),
    "no config": (lambda f: (f / "prior" / "config.json").unlink(), "has no config.json"),
    "cut config": (lambda f: cut(f / "tokenizer" / "config.json"), "is not valid JSON"),
    "cut clip": (lambda f: cut(f / CLIP_CONFIG), "is not valid JSON"),
    "empty clip": (lambda f: (f / CLIP_CONFIG).write_text("{}"), "is not the config of a CLIP"),
}


@pytest.fixture(scope="module")
def intact(make_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact") / "pipe"
    TokenPipeline.from_run(make_run("cat")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_in_one_line(intact, kind, tmp_path):
    folder = tmp_path / "pipe"
    shutil.copytree(intact, folder)
    harm, words = DAMAGE[kind]
    harm(folder)
    message = refusal(CheckpointError, TokenPipeline.from_pretrained, folder)
    assert words in message
    assert "pipe" in message


def test_bad_arguments(saved, make_run, tmp_path):
    text, classes = TokenPipeline.from_pretrained(saved), TokenPipeline.from_run(make_run("gpt"))
    plain, ldm = (TokenPipeline.from_run(make_run(kind)) for kind in ("pixelcnn", "ldm"))
    for pipeline, options, words in [
        (text, {"prompt": ""}, "the prompt is empty"),
        (text, {"prompt": ["a ring", " "]}, "the prompt is empty"),
        (text, {"prompt": []}, "prompt is an empty list"),
        (text, {"prompt": 3}, "prompt 3 must be of type str"),
        (text, {"class_labels": 1}, "reads text, not classes; give prompt"),
        (text, {"prompt": "a ring", "class_labels": 1}, "reads text, not classes"),
        (text, {"prompt": ["a", "b"], "num_images": 1}, "num_images 1 must be at least 2"),
        (text, {"prompt": "a ring", "guidance_scale": 3}, "CAT does not take guidance_scale=3"),
        (classes, {"prompt": "a ring"}, "reads no text such as the prompt 'a ring'; give class_l"),
        (classes, {"class_labels": 3}, "class 3 is not one of this prior's classes (0..2)"),
        (classes, {"class_labels": [0, -1]}, "class -1 is not one of"),
        (classes, {"class_labels": []}, "class_labels is an empty list"),
        (classes, {"class_labels": 0.5}, "class_labels 0.5 must be of type int"),
        (classes, {"num_images": 0}, "num_images 0 must be a whole number, at least 1"),
        (classes, {"num_images": 2.0}, "num_images 2.0 must be a whole number"),
        (classes, {"num_images_per_prompt": "2"}, "num_images_per_prompt '2' must be a whole"),
        (classes, {"seed": 1.5}, "seed 1.5 is no whole number"),
        (classes, {"seed": torch.tensor([3, 4])}, "is no whole number, and no list of them"),
        (classes, {"seed": [1, 2]}, "2 seeds for 1 images"),
        (classes, {"batch_size": 0}, "batch_size 0 must be at least 1"),
        (classes, {"seed": -1}, "seed -1"),
        (classes, {"num_steps": 3}, "GPT does not take num_steps=3"),
        (classes, {"top_k": 0}, "top_k 0 must be at least 1"),
        (classes, {"output_type": "latent"}, "output_type 'latent' is not known; take 'pil', 'np'"),
        (
            classes,
            {"num_images_per_prompt": 0},
            "num_images_per_prompt 0 must be a whole number, at least 1",
        ),
        (classes, {"num_images_per_prompt": 2, "num_images": 2}, "give one of them"),
        (classes, {"seed": 1, "generator": torch.Generator()}, "give one of them"),
        (classes, {"generator": 3}, "generator of type int is no torch.Generator or list"),
        (classes, {"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        (plain, {"prompt": "a ring"}, "reads no text such as the prompt 'a ring'; leave it out"),
        (plain, {"class_labels": 0}, "(none: it is unconditional)"),
        (ldm, {"top_k": 3}, "LDM does not take top_k=3"),
    ]:
        pipeline.set_progress_bar_config(disable=True)
        assert words in refusal(InputError, pipeline, **options)
    load = TokenPipeline.from_pretrained
    message = refusal(ConfigError, load, saved, device_map="auto")
    assert "device_map 'auto' is no device: a model stays on one" in message
    message = refusal(ConfigError, load, saved, torch_dtype="int8")
    assert "torch_dtype 'int8' is none of" in message
    assert "does not exist" in refusal(CheckpointError, load, "./no/where")
    message = refusal(CheckpointError, load, make_run("gpt"))
    assert "is not a pipeline (no model_index.json); make one from a run: spectok export" in message


# -- commands --------------------------------------------------------------------------------------


def next_command(printed):
    line = next(line for line in printed.splitlines() if line.startswith("next: "))
    return shlex.split(line.removeprefix("next: "))[1:]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpt", ["sample", "--top-k", 5, "--prior"]),
        ("ldm", ["sample", "--num-steps", 2, "--class", 1, "--prior"]),
        ("cat", ["text-to-image", "a red ring", "--model"]),
    ],
)
def test_commands_draw_the_same_from_a_pipeline(
    spectok, make_run, kind, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run, more = make_run(kind), ["--num-images", 3, "--seed", 4, "--out"]
    status, out, _ = spectok("export", run, "--out", "pipe")
    assert status == 0
    assert spectok(*next_command(out))[0] == 0
    assert spectok(*words, run, *more, "run.png")[0] == 0
    assert spectok(*words, "pipe", *more, "pipe.png")[0] == 0
    assert Path("run.png").read_bytes() == Path("pipe.png").read_bytes()
    printed = spectok(*words, "pipe", "--seed=4", "--num-images", 3, "--out", "again.png")[1]
    given = [*map(str, words), "pipe", "--num-images", "3"]
    assert next_command(printed) == [*given, "--out", "again-5.png", "--seed", "5"]

    pipeline = TokenPipeline.from_pretrained("pipe")
    given = {"gpt": {"top_k": 5}, "ldm": {"class_labels": 1, "num_steps": 2}}
    given = given.get(kind, {"prompt": "a red ring"}) | {"num_images": 3, "seed": 4}
    save_grid(enlarge(pipeline(**given, output_type="pt").images), "own.png")
    assert Path("own.png").read_bytes() == Path("run.png").read_bytes()


def test_what_commands_refuse(spectok, saved, make_run, runs, tmp_path):
    tokenizer, out = runs / "tokenizer", ["--out", tmp_path / "x.png"]
    for words, message in [
        (["export", tmp_path / "no", "--out", tmp_path / "p"], "give a trained prior"),
        (["export", make_run("gpt"), "--out", make_run("gpt")], "holds a model of something else"),
        (["export", make_run("gpt"), "--text", runs / "clip", "--out", "p"], "reads no text"),
        (["text-to-image", "", "--model", saved, *out], "the prompt is empty"),
        (["text-to-image", "a", "--model", saved, "--pretrained", "x", *out], "give --text NAME"),
        (["text-to-image", "a", "--model", make_run("gpt"), *out], "reads no text"),
        (["sample", "--prior", saved, "--class", 1, *out], "class 1 is not one of"),
    ]:
        status, _, err = spectok(*words)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    words = ["text-to-image", "a", "--model", saved, "--tokenizer", tokenizer, *out]
    assert spectok(*words, "--text", runs / "clip")[0] == 0
    cut(saved / "prior" / WEIGHTS)
    status, _, err = spectok("sample", "--prior", saved, *out)
    assert (status, err.count("\n")) == (2, 1), err
    assert "cannot load" in err


def test_a_command_imports_nothing_unless_it_is_told_to(spectok, saved, tmp_path, monkeypatch):
    (saved / "evilmod.py").write_text(EVIL)
    path = saved / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": ["evilmod", "X"]}))
    monkeypatch.syspath_prepend(saved)
    words = ["text-to-image", "a ring", "--model", saved, "--out", tmp_path / "grid.png"]
    status, _, err = spectok(*words)
    assert (status, err.count("\n")) == (2, 1), err
    assert "no installed plugin registers the prior evilmod.X" in err
    assert not (saved / "ran").exists()
    status, _, err = spectok(*words, "--trust")
    assert (status, err.count("\n")) == (2, 1), err
    assert (saved / "ran").exists()
    monkeypatch.delitem(sys.modules, "evilmod")


def test_it_is_exported():
    assert spectok_generation.TokenPipeline is TokenPipeline
    assert "TokenPipeline" in dir(spectok_generation)
