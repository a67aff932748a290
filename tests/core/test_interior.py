"""Training compares pictures, not the border that a preset adds around them."""

import numpy as np
import pytest
import torch
from PIL import Image

from spectok import list_tokenizers
from spectok.data import DataConfig, build_dataset
from spectok.testing.small import small_tokenizer
from spectok.training import LossConfig, TokenizerRecipe, TrainConfig, train_tokenizer

INTERIOR = (3, 2, 9, 10)
SMALL_TOKENIZER = {
    "name": "vqvae",
    "image_size": 32,
    "in_channels": 3,
    "codebook_size": 32,
    "codebook_dim": 8,
    "channels": 16,
    "num_blocks": 1,
    "residual_channels": 8,
    "quantizer": "vq",
}


@pytest.mark.parametrize("name", list_tokenizers())
def test_no_gradient_comes_from_outside_the_interior(name):
    torch.manual_seed(0)
    model = small_tokenizer(name)
    model.interior = INTERIOR
    compared, compare = [], model.compare

    def remember(images, reconstruction):  # of hvqvae it is not the reconstruction of the output
        compared.append(reconstruction)
        return compare(images, reconstruction)

    model.compare = remember
    output = model(torch.rand(2, *model.image_shape) * 2 - 1)
    (decoded,) = compared
    assert decoded is output.reconstruction or name == "hvqvae"
    (gradient,) = torch.autograd.grad(sum(output.losses.values()), decoded)
    assert model.inside(gradient).abs().sum() > 0
    model.inside(gradient)[:] = 0
    assert not gradient.any()


def test_the_trainer_takes_the_interior_from_the_data(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(4):
        pixels = generator.integers(0, 256, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = DataConfig(name="celeba256", path=str(folder), image_size=32)
    images = torch.stack([item["images"] for item in build_dataset(data)])
    assert (images[..., :3] == -1).all()  # the border at the left
    recipe = TokenizerRecipe(
        tokenizer=SMALL_TOKENIZER,
        data=data,
        train=TrainConfig(steps=1, batch_size=len(images), learning_rate=1e-12),
        losses=LossConfig(l1=1.0),
    )
    result = train_tokenizer(recipe, tmp_path / "run")
    model, record = result.model, result.history[0]
    top, left, height, width = model.interior
    assert (height, width) == (32, 26)
    error = (model(images).reconstruction - images)[..., top : top + height, left : left + width]
    assert record["loss/l1"] == pytest.approx(error.abs().mean().item(), rel=1e-4)
    assert record["loss/reconstruction"] == pytest.approx(error.square().mean().item(), rel=1e-4)
