"""Images in and out of tensors and files."""

import numpy as np
import pytest
import torch
from PIL import Image

from spectok.data.files import load_image, load_original
from spectok.errors import DataError, InputError
from spectok.images import make_grid, save_grid, to_float, to_pil, to_uint8


def test_uint8_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).min() == -1
    assert to_float(every).max() == 1


def test_to_uint8_clamps_and_rounds():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0, 100.6 / 127.5 - 1]).reshape(1, 1, 6)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255, 101]


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_has_the_same_pixels(channels):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    image = to_pil(to_float(pixels))
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert np.array_equal(np.asarray(image).reshape(5, 7, channels), pixels.permute(1, 2, 0))
    with pytest.raises(InputError, match=r"\(2, 5, 7\) is not"):
        to_pil(torch.zeros(2, 5, 7))


def test_grid_places_images_row_by_row():
    images = torch.stack([torch.full((1, 2, 3), 10 * k, dtype=torch.uint8) for k in range(5)])
    grid = make_grid(images, columns=3, gap=1)
    assert grid.shape == (1, 5, 11)
    assert grid[0, 0].tolist() == [0] * 3 + [255] + [10] * 3 + [255] + [20] * 3
    assert grid[0, 3].tolist() == [30] * 3 + [255] + [40] * 3 + [255] * 4
    assert make_grid(images).shape == (1, 6, 13)
    with pytest.raises(InputError, match="B ≥ 1"):
        make_grid(torch.zeros(0, 1, 2, 2))


def test_save_and_load(tmp_path):
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    path = save_grid(to_float(pixels)[None], tmp_path / "new" / "grid.png")
    assert torch.equal(load_image(path, (3, 8, 8)), to_float(pixels))
    assert load_image(path, (1, 4, 4)).shape == (1, 4, 4)


def test_load_image_says_what_is_wrong(tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(DataError, match=r"bad\.png cannot be read \(not an image"):
        load_image(tmp_path / "bad.png", (3, 8, 8))
    with pytest.raises(DataError, match="the file is missing"):
        load_image(tmp_path / "none.png", (3, 8, 8))


def test_images_are_loaded_at_any_size_or_at_their_own(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 8:12] = 255  # a white bar in the middle
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    tall = load_image(tmp_path / "wide.png", (1, 8, 4))
    assert tall.shape == (1, 8, 4)
    assert (tall == 1).all()  # the centre, whose height was the shorter side already
    assert load_image(tmp_path / "wide.png", (3, 16, 40)).shape == (3, 16, 40)
    assert load_original(tmp_path / "wide.png", 1).shape == (1, 8, 20)
    own = load_original(tmp_path / "wide.png", 3)
    assert torch.equal(own, to_float(torch.from_numpy(pixels.transpose(2, 0, 1).copy())))
    with pytest.raises(DataError, match="the file is missing"):
        load_original(tmp_path / "none.png", 3)


def test_shapes_written_in_signatures(checked_shapes, tmp_path):
    path = save_grid(torch.zeros(4, 3, 4, 4), tmp_path / "grid.png")
    assert load_image(path, (3, 10, 10)).shape == (3, 10, 10)
    assert to_uint8(torch.zeros(2, 1, 4, 4)).dtype == torch.uint8


def test_a_few_bytes_that_claim_a_huge_picture_are_refused_undecoded(tmp_path):
    path = tmp_path / "a.webp"
    Image.new("RGB", (8_000, 5_000)).save(path, lossless=True)
    assert path.stat().st_size < 4_000
    with pytest.raises(DataError, match="claims 8000×5000 pixels"):
        load_image(path, (3, 16, 16))
