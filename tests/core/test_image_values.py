"""Images whose values cannot be those of an image in [-1, 1] are refused, wherever they come in."""

from __future__ import annotations

import pytest
import torch

from spectok.errors import InputError
from spectok.images import FARTHEST, check_values
from spectok.testing.small import small_tokenizer

BAD = {
    "bytes": (lambda x: (x + 1) * 127.5, r"far outside \[-1, 1\]; convert bytes by images / 127.5"),
    "NaN": (
        lambda x: x.masked_fill(x > 0.9, torch.nan),
        r"image 0 of the batch .* infinite or NaN",
    ),
    "infinite": (lambda x: x.masked_fill(x > 0.9, -torch.inf), "infinite or NaN"),
}


@pytest.fixture(params=["vqvae", "vqvae2", "qgvae"])
def tokenizer(request):
    return small_tokenizer(request.param)


@pytest.mark.parametrize("kind", BAD)
def test_no_door_lets_them_in(tokenizer, kind):
    spoil, told = BAD[kind]
    images = torch.rand(2, *tokenizer.image_shape) * 2 - 1
    tokenizer.train()
    tokenizer(images)
    for into in (tokenizer, tokenizer.eval().encode, tokenizer.reconstruct, tokenizer.processor):
        with pytest.raises(InputError, match=told):
            into(spoil(images))
    with pytest.raises(InputError, match=told):
        tokenizer.encode_rows({"image": list(spoil(images))})
    larger = torch.nn.functional.interpolate(spoil(images), scale_factor=2)
    with pytest.raises(InputError, match=told.replace("0 of the batch", "0: image 0 of the batch")):
        tokenizer.processor(larger)  # which clamps what it resizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_noise_beyond_the_range_is_no_mistake(dtype):
    check_values(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype))
    check_values(torch.full((1, 1, 2, 2), -FARTHEST, dtype=dtype))
    with pytest.raises(InputError, match="far outside"):
        check_values(torch.full((1, 1, 2, 2), FARTHEST + 1, dtype=dtype))


def test_nothing_is_read_where_there_is_no_value():
    check_values(torch.empty(1, 3, 8, 8, device="meta"))
