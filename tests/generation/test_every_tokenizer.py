"""Every prior on every tokenizer, one from a separately installed package among them.

Nothing here asks which tokenizer it has: each is saved, its tokens are extracted, a prior of each
kind is trained on what the saved files say, and images are drawn from the pair.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import VQModel

from spectok import list_priors, list_tokenizers, load_tokenizer
from spectok.data import DataConfig
from spectok.testing.small import small_tokenizer
from spectok_generation.diffusion import DiffusionOptions, sample_latents
from spectok_generation.drawing import draw_batch, draw_images
from spectok_generation.extraction import Extraction
from spectok_generation.masked import sample_masked
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.prior_recipe import PriorRecipe
from spectok_generation.priors import AutoregressivePrior, create_prior
from spectok_generation.sampling import sample_batch
from spectok_generation.tokens import TokenCache
from spectok_generation.training import extract_data, train_prior

SHAPE = (3, 16, 16)
DATA = {"name": "shapes", "limit": 16, "image_size": SHAPE[1], "channels": SHAPE[0]}
PROMPTS = ["a large red circle", "a small blue ring", "a green cross"]

TOKENIZERS = {name: {} for name in list_tokenizers()}
TOKENIZERS |= {"strips": {}, "vqvae with pq": {"name": "vqvae", "quantizer": "pq"}}
TOKENIZERS |= {"qgvae with product": {"name": "qgvae", "quantizer": "product"}}
FROZEN = {"name": "latentvq", "train_decoder": False}
TOKENIZERS |= {"latentvq, frozen": FROZEN | {"quantizer": "product"}}
TOKENIZERS |= {"latentvq of frequencies": FROZEN | {"token_space": "frequency"}}
TOKENIZERS |= {"vqvae2 with three grids": {"name": "vqvae2", "num_grids": 3}}
ALIKE = ("cvqvae", "hvqvae", "sqvae", "vqgan", "vqwae")  # grids as those of others here
FOREIGN = "VQModel of diffusers"  # in the folder that its library writes
TOKENIZERS[FOREIGN] = {}
PRIORS = {
    "gpt": {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.0},
    "pixelcnn": {"num_layers": 2, "width": 8, "first_kernel": 3, "head_width": 16},
    "cat": {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.0},
    "maskgit": {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.0},
    "ldm": {"channels": [8, 16], "layers": 1, "attention_levels": [1], "num_timesteps": 10},
}
PRIORS["gpt in random orders"] = {"name": "gpt", "order": "random"} | PRIORS["gpt"]
FROM_IMAGES, FROM_TEXT = ("ldm",), ("cat",)


@pytest.fixture(scope="module")
def example_package(on_example_path):
    """Start with the example package installed."""
    with on_example_path():
        yield


@pytest.fixture(scope="module")
def clip(save_small_clip, tmp_path_factory):
    """Return the folder of a tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    save_small_clip(folder)
    return folder


def save_foreign(folder):
    """Save a small model with diffusers, its codes spread so that several are used."""
    model = VQModel(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        num_vq_embeddings=32,
        sample_size=SHAPE[1],
    )
    torch.nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(folder)


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name


@pytest.fixture(scope="module", params=[slow(name) for name in TOKENIZERS])
def made(request, example_package, tmp_path_factory):
    """Return the folder of a saved tokenizer with random weights, and that of its tokens."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(1)
    options = {"name": request.param, "in_channels": SHAPE[0]} | TOKENIZERS[request.param]
    if request.param == FOREIGN:
        save_foreign(folder / "tokenizer")
        tokenizer = load_tokenizer(folder / "tokenizer")
    else:
        tokenizer = small_tokenizer(**options)
        tokenizer.save_pretrained(folder / "tokenizer")
    data = DataConfig(**DATA)
    where = str(folder / "tokenizer")
    extract_data(tokenizer, data, folder / "tokens", Extraction(), path=where)
    return folder / "tokenizer", folder / "tokens"


@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_of_any_kind_learns_any_tokenizer(kind, made, clip, tmp_path):
    tokenizer_folder, tokens_folder = made
    # What a masked prior is to predict differs from step to step: it needs more of them to improve.
    steps = {
        "steps": 16 if kind == "maskgit" else 4,
        "batch_size": DATA["limit"],
        "learning_rate": 1e-2,
        "log_every": 1,
    }
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
    options = DiffusionOptions(num_steps=2) if kind in FROM_IMAGES else None
    images = draw_images(prior, tokenizer, 3, condition, seed=5, options=options)
    assert images.shape == (3, *SHAPE)
    assert images.isfinite().all()

    # Image 1 is drawn alone as it is among others. Of latents, those before rounding to codes.
    alone = {"numbers": [1], "condition": condition[[1]], "seed": 5}
    if kind not in FROM_IMAGES:
        draw = sample_batch if isinstance(prior, AutoregressivePrior) else sample_masked
        if kind == "maskgit":
            tokens = torch.from_numpy(TokenCache(tokens_folder).indices(slice(None)))
            classes = {"num_classes": prior.num_classes}
            untrained = create_prior(kind, prior.token_spec, **classes, **PRIORS[kind]).eval()
            labels = torch.tensor(TokenCache(tokens_folder).labels)
            assert prior.log_prob(tokens, labels).mean() > untrained.log_prob(tokens, labels).mean()
        else:
            assert losses[-1] < losses[0]
        tokens = draw(prior, range(3), condition, seed=5)
        tokenizer.token_spec.validate(tokens)
        assert torch.equal(draw(prior, **alone), tokens[[1]])
        torch.testing.assert_close(draw_batch(prior, tokenizer, **alone), images[[1]])
    else:
        latents = sample_latents(prior, range(3), condition, seed=5, options=options)
        assert latents.shape == (3, *tokenizer.latent_shape)
        found = sample_latents(prior, **alone, options=options)
        torch.testing.assert_close(found, latents[[1]], rtol=1e-3, atol=1e-3)


def test_no_kind_of_prior_is_left_out():
    assert {options.get("name", kind) for kind, options in PRIORS.items()} == set(list_priors())
