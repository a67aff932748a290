"""Every file in ``configs/`` loads and builds."""

import itertools
import json
import math
import re
import subprocess
import sys

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from spectok.cli.competitors import name_competitors
from spectok.data.splits import default_held_out
from spectok.evaluation.comparison import check_terms
from spectok.loading import load_tokenizer
from spectok.nn.vqgan import PixelAttention
from spectok.plugins.registry import get_dataset
from spectok.recipes.files import builtin_folder, list_recipes, recipe_folders
from spectok.recipes.options import upgrade_recipe
from spectok.recipes.recipe import of_data
from spectok.training.recipe import load_tokenizer_recipe
from spectok_generation.prior_recipe import load_prior_recipe
from spectok_generation.priors.factory import create_prior
from spectok_generation.text.clip_recipe import load_clip_recipe

RECIPES = list_recipes()
OURS = sorted(name for name, path in RECIPES.items() if path.is_relative_to(builtin_folder()))
WRITTEN = {name: yaml.safe_load(RECIPES[name].read_text(encoding="utf-8")) for name in OURS}
PRIORS = [name for name in OURS if isinstance(WRITTEN[name].get("prior"), dict)]
TOKENIZERS = [name for name in OURS if name not in PRIORS and "tokenizer" in WRITTEN[name]]
CLIPS = [name for name in OURS if "clip" in WRITTEN[name]]
DEMOS = [name for name in OURS if "tokenizers" in WRITTEN[name]]
LAUNCHES = sorted((builtin_folder() / "accelerate").glob("*.yaml"))


def build(recipe):
    options = {key: value for key, value in recipe.tokenizer.items() if key != "name"}
    with torch.device("meta"):  # shapes only: the large ones would take gigabytes
        return load_tokenizer(recipe.tokenizer["name"], **options)


def test_every_file_is_covered():
    files = {p.relative_to(builtin_folder()) for p in builtin_folder().rglob("*") if p.is_file()}
    recipes = {
        RECIPES[name].relative_to(builtin_folder())
        for name in [*TOKENIZERS, *PRIORS, *CLIPS, *DEMOS]
    }
    assert files == recipes | {path.relative_to(builtin_folder()) for path in LAUNCHES}
    assert TOKENIZERS
    assert LAUNCHES


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_recipe_builds_for_its_images(name):
    recipe = load_tokenizer_recipe(name)
    tokenizer = build(recipe)
    images = get_dataset(recipe.data.name).preprocessing(recipe.data).image_shape
    assert tuple(images) == tuple(tokenizer.image_shape)
    assert tokenizer.token_spec.bits_per_image > 0


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_recipe_builds_for_its_tokens(name):
    recipe = load_prior_recipe(name)
    assert recipe.tokenizer in list_recipes(), "a shipped recipe cannot rely on a trained model"
    tokenizer = build(load_tokenizer_recipe(recipe.tokenizer))
    spec, record = tokenizer.token_spec, {"latent_shape": list(tokenizer.latent_shape)}
    options = {key: value for key, value in recipe.prior.items() if key != "name"}
    condition = {"text": {"width": 768}} if recipe.text else {"num_classes": 10}
    with torch.device("meta"):
        prior = create_prior(recipe.prior["name"], spec, tokenizer=record, **condition, **options)
    assert prior.token_spec == spec


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_recipe_builds_for_its_images(name):
    from open_clip import CLIP

    from spectok_generation.text.clip import model_config

    recipe = load_clip_recipe(name)
    images = get_dataset(recipe.data.name).preprocessing(recipe.data).image_shape
    with torch.device("meta"):
        assert CLIP(**model_config(recipe.clip, images)).context_length >= 3


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_names_recipes_that_fit_together(name):
    from spectok_generation.demo.demo_recipe import load_plan

    plan = load_plan(name)
    assert plan.prior.tokenizer in list_recipes()
    assert (
        len({build(recipe).token_spec.bits_per_image for recipe in plan.tokenizers.values()}) == 1
    )


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_begins_with_what_it_is(name):
    first = RECIPES[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 120


def leading_comment(name):
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    return " ".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("name", [n for n in OURS if n.startswith(("tokenizers/", "generation/"))])
def test_a_recipe_begins_with_whether_it_was_measured(name):
    """Those of smoke, demo and compare are not for results, but for a command and its report."""
    assert re.search(r"\b[Mm]easured\b|\b[Nn]ot measured\b", leading_comment(name))


IMAGES = {  # of the training split; those without a test split in brackets, all of them
    "cifar10": 50_000,
    "celeba64": 162_770,
    "celeba64_crop140": 162_770,
    "celeba256": 162_770,
    "ffhq256": [70_000],
    "imagenet64": 1_281_167,
    "imagenet128": 1_281_167,
    "imagenet256": 1_281_167,
    "lsun_church128": [126_227],
    "mm_celebahq256": [30_000],
    "mnist": 60_000,
    "mnist32": 60_000,
    "svhn": 73_257,
}
STEPS = re.compile(r"steps: (\d+) +# .*?\b(\d+) epochs\b.*? of ([\d,]+) (batches|images)")
COUNTED = {n: found for n in OURS if (found := STEPS.search(RECIPES[n].read_text("utf-8")))}


@pytest.mark.parametrize("name", COUNTED)
def test_steps_are_the_epochs_that_the_comment_counts(name):
    found = COUNTED[name]
    steps, epochs = int(found[1]), int(found[2])
    counted, unit = int(found[3].replace(",", "")), found[4]
    data, size = WRITTEN[name]["data"], WRITTEN[name]["train"]["batch_size"]
    images = IMAGES[data["name"]]
    if isinstance(images, list):
        images = images[0] - data.get("num_held_out", default_held_out(images[0]))
    assert counted == (images if unit == "images" else math.ceil(images / size))
    per_epoch = images / size
    assert epochs * math.floor(per_epoch) <= steps <= epochs * math.ceil(per_epoch)


def test_smoke_recipes_take_seconds():
    names = [name for name in TOKENIZERS if name.startswith("smoke/")]
    assert names
    for name in names:
        recipe = load_tokenizer_recipe(name)
        assert recipe.data.name == "digits", "needs no download"
        assert recipe.train.steps <= 20
        assert recipe.train.batch_size <= 16


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10"])
def test_baseline_and_paper_can_be_compared_at_equal_bits(data):
    bits = {
        key: build(load_tokenizer_recipe(f"{key}/{data}")).token_spec.bits_per_image
        for key in ("vqvae", "qgvae")
    }
    assert math.isclose(bits["vqvae"], bits["qgvae"])


TABLES = {  # of the papers: recipes, places of the latents, bits per image
    "QG-VAE, Table 1, MNIST": ("qgvae vqvae vqwae", "mnist", 64, 576),
    "QG-VAE, Table 1, MNIST, SQ-VAE": ("sqvae", "mnist32", 64, 576),
    "QG-VAE, Table 1, CIFAR-10": ("qgvae vqvae vqwae sqvae", "cifar10", 64, 576),
    "QG-VAE, Table 1, SVHN": ("qgvae vqvae", "svhn", 64, 576),
    "QG-VAE, section 4.2": ("qggan vqgan", "imagenet128", 256, 2304),
    "FQ-VAE, Table 1, MNIST": ("cvqvae", "mnist", 49, 441),
    "FQ-VAE, Table 1, MNIST, VQ-VAE": ("vqvae", "mnist_7x7", 49, 441),
    "FQ-VAE, Table 1, MNIST, SQ-VAE": ("sqvae", "mnist_512", 49, 441),
    "HR-VQVAE, Table 1, CIFAR-10": ("vqvae", "cifar10_16x16", 256, 2304),
    "HR-VQVAE, Table 1, CIFAR-10, its own": ("hrvqvae", "cifar10", 256, 2304),
    "HR-VQVAE, Table 1, MNIST": ("vqvae", "mnist_16x16", 256, 2304),
    "HR-VQVAE, Table 1, MNIST, its own": ("hrvqvae", "mnist", 256, 2304),
}


@pytest.mark.parametrize("table", TABLES)
def test_recipes_have_the_latents_and_bits_of_a_papers_table(table):
    keys, data, places, bits = TABLES[table]
    for key in keys.split():
        model = build(load_tokenizer_recipe(f"{key}/{data}"))
        assert (model.token_space.num_tokens, model.token_spec.bits_per_image) == (places, bits)


PLAIN = [name for name in TOKENIZERS if name.endswith("_plain")]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_vqvae_differs_from_its_neighbour_in_how_codes_learn_alone(name):
    names = (name, name.removesuffix("_plain"))
    recipes = [load_tokenizer_recipe(each).model_dump(mode="json") for each in names]
    quantizers = [recipe["tokenizer"].pop("quantizer") for recipe in recipes]
    assert [quantizer["name"] for quantizer in quantizers] == ["vq", "ema"]
    assert recipes[0] == recipes[1]


def test_both_vqvaes_are_compared_in_one_table():
    found = name_competitors(["vqvae", "vqvae_plain"], "cifar10", [])
    assert list(found) == ["vqvae", "vqvae_plain"]
    check_terms(found, 576)
    named = {label: entry.recipe.tokenizer["quantizer"]["name"] for label, entry in found.items()}
    assert named == {"vqvae": "ema", "vqvae_plain": "vq"}


def test_vqgan_has_qggans_losses_and_discriminator():
    vqgan, qggan = (load_tokenizer_recipe(f"{key}/imagenet128") for key in ("vqgan", "qggan"))
    assert (vqgan.losses, vqgan.adversarial) == (qggan.losses, qggan.adversarial)
    assert (vqgan.train, vqgan.data) == (qggan.train, qggan.data)
    assert not any(isinstance(part, PixelAttention) for part in build(vqgan).modules())


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_its_settings(path):
    settings = load_config_from_file(str(path))
    assert isinstance(settings, ClusterConfig)
    assert settings.num_processes >= 1
    assert settings.mixed_precision == "no", "precision is said once, in the recipe"


@pytest.mark.slow
def test_two_processes_on_cpus_are_one_run(tmp_path):
    settings = builtin_folder() / "accelerate" / "cpu2.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(settings)]
    words = ["-m", "spectok", "train", "smoke/qgvae", "--output", "run"]
    command = [sys.executable, *launch, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: spectok reconstruct") == 1, "one process speaks for both"
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((newest / "manifest.json").read_text())["num_processes"] == 2


def test_recipes_come_from_the_checkout_itself():
    assert builtin_folder().name == "configs"
    assert recipe_folders()["spectok"] == builtin_folder()
    assert not any(name.startswith("accelerate/") for name in list_recipes())


def test_a_recipe_of_an_earlier_version_gets_the_options_of_this_one():
    section = {"name": "hrvqvae", "image_size": 32, "quantizer": {"name": "tree", "branching": 8}}
    upgraded = upgrade_recipe({"tokenizer": section})["tokenizer"]
    assert upgraded["quantizer"]["start"] == "kmeans"  # as it was before there was a choice
    gone = section | {"no_more": 1}
    assert upgrade_recipe({"tokenizer": gone})["tokenizer"]["no_more"] == 1


def test_settings_of_the_data_may_say_so():
    assert of_data(["path=DIR", "data.limit=5"]) == ["data.path=DIR", "data.limit=5"]
