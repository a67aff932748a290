"""Every prior on every tokenizer, one from a separately installed package among them.

Nothing here asks which tokenizer it has: each is saved, its tokens are extracted, a prior of each
kind is trained on what the saved files say, and images are drawn from the pair.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

import spectok
from spectok import list_priors, list_tokenizers, plugins
from spectok.data import DataConfig
from spectok.testing.small import small_tokenizer
from spectok_generation.diffusion import DiffusionOptions, sample_latents
from spectok_generation.extraction import Extraction
from spectok_generation.generate import draw_batch, draw_images, load_encoder, load_pair
from spectok_generation.priors import AutoregressivePrior
from spectok_generation.recipe import PriorRecipe
from spectok_generation.sampling import sample_batch
from spectok_generation.text.clip import model_config, save_clip
from spectok_generation.text.recipe import ClipConfig
from spectok_generation.training import extract_data, train_prior

EXAMPLE = Path(spectok.__file__).parents[2] / "examples" / "third_party_quantizer"
INSTALL = "-m pip install -q --no-index --no-deps --no-build-isolation --disable-pip-version-check"
SHAPE = (3, 16, 16)
DATA = {"name": "shapes", "limit": 16, "image_size": SHAPE[1], "channels": SHAPE[0]}
PROMPTS = ["a large red circle", "a small blue ring", "a green cross"]

TOKENIZERS = {name: {} for name in list_tokenizers()}
TOKENIZERS |= {"strips": {}, "vqvae with product": {"name": "vqvae", "quantizer": "product"}}
PRIORS = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.0},
    "pixelcnn": {"num_layers": 2, "width": 8, "first_kernel": 3, "head_width": 16},
    "cat": {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.0},
    "ldm": {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 10},
}
FROM_IMAGES, FROM_TEXT = ("ldm",), ("cat",)


@pytest.fixture(scope="module")
def example_package(tmp_path_factory):
    """Install the example package into a folder on the path, as anyone's would be."""
    if not EXAMPLE.is_dir():
        pytest.skip("needs a checkout")
    folder = tmp_path_factory.mktemp("site-packages")
    subprocess.run([sys.executable, *INSTALL.split(), "--target", folder, EXAMPLE], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        plugins.installed.cache_clear()
        yield
    plugins.installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("spectok_product")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return the folder of a tiny CLIP with random weights."""
    torch.manual_seed(1)
    sizes = {"image_layers": 1, "text_layers": 1, "context_length": 8, "patch_size": 16}
    widths = {"embed_dim": 12, "image_width": 16, "text_width": 16, "head_width": 8}
    config = model_config(ClipConfig(**sizes, **widths), SHAPE)
    folder = tmp_path_factory.mktemp("clip") / "model"
    save_clip(open_clip.CLIP(**config), config, folder)
    return folder


@pytest.fixture(scope="module", params=TOKENIZERS)
def made(request, example_package, tmp_path_factory):
    """Return the folder of a saved tokenizer with random weights, and that of its tokens."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(1)
    options = {"name": request.param, "in_channels": SHAPE[0]} | TOKENIZERS[request.param]
    tokenizer = small_tokenizer(**options)
    tokenizer.save_pretrained(folder / "tokenizer")
    data = DataConfig(**DATA)
    where = str(folder / "tokenizer")
    extract_data(tokenizer, data, folder / "tokens", Extraction(), path=where)
    return folder / "tokenizer", folder / "tokens"


@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_of_any_kind_learns_any_tokenizer(kind, made, clip, tmp_path):
    tokenizer_folder, tokens_folder = made
    steps = {"steps": 4, "batch_size": DATA["limit"], "learning_rate": 1e-2, "log_every": 1}
    sections = {"prior": {"name": kind} | PRIORS[kind], "train": steps | {"sample_every": None}}
    sections |= {"tokenizer": str(tokenizer_folder)}
    sections |= {"data": DATA} if kind in FROM_IMAGES else {"tokens": str(tokens_folder)}
    sections |= {"text": {"encoder": str(clip)}} if kind in FROM_TEXT else {}
    result = train_prior(PriorRecipe.model_validate(sections), tmp_path / "run")
    losses = torch.tensor([record["loss"] for record in result.history])
    assert losses.isfinite().all()

    prior, tokenizer = load_pair(tmp_path / "run")
    if kind in FROM_TEXT:
        condition = load_encoder(prior, tmp_path / "run")(PROMPTS)
    else:
        condition = torch.arange(3) % prior.num_classes
    autoregressive = isinstance(prior, AutoregressivePrior)
    options = None if autoregressive else DiffusionOptions(num_steps=2)
    images = draw_images(prior, tokenizer, 3, condition, seed=5, options=options)
    assert images.shape == (3, *SHAPE)
    assert images.isfinite().all()

    # Image 1 is drawn alone as it is among others. Of latents, those before rounding to codes.
    alone = {"numbers": [1], "condition": condition[[1]], "seed": 5}
    if autoregressive:
        assert losses[-1] < losses[0]
        tokens = sample_batch(prior, range(3), condition, seed=5)
        tokenizer.token_spec.validate(tokens)
        assert torch.equal(sample_batch(prior, **alone), tokens[[1]])
        torch.testing.assert_close(draw_batch(prior, tokenizer, **alone), images[[1]])
    else:
        latents = sample_latents(prior, range(3), condition, seed=5, options=options)
        assert latents.shape == (3, *tokenizer.latent_shape)
        found = sample_latents(prior, **alone, options=options)
        torch.testing.assert_close(found, latents[[1]], rtol=1e-3, atol=1e-3)


def test_no_kind_of_prior_is_left_out():
    assert set(PRIORS) == set(list_priors())
