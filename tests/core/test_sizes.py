"""Images of any size: what tokenizers take them, whole and in tiles."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spectok import ImageTokenizer, list_tokenizers, load_tokenizer
from spectok.data import DataConfig, build_originals, config_for_path
from spectok.errors import DataError, InputError, TokenError
from spectok.evaluation import Sizing, evaluate_originals
from spectok.metrics import psnr
from spectok.testing.small import small_tokenizer
from spectok.tiling import Tiling, decode_tiles, encode_tiles, mirror_to, plan_tiles
from spectok.token_files import read_images, read_tokens, write_tokens

ANY_SIZE = {
    **{
        "cvqvae": 4,
        "favae": 4,
        "hvqvae": 4,
        "latentvq": 4,
        "rqvae": 4,
        "sqvae": 4,
        "vqgan": 4,
        "vqvae": 4,
    },
    **{"vqwae": 4, "dqvae": 8, "hqvae": 8, "vqvae2": 8, "hrvqvae": 2},
}
"""Tokenizers that take any multiple of so many pixels, as built by ``small_tokenizer``."""
ONE_SIZE = {"fqvae": "frequency", "qgvae": "the whole image"}
"""Tokenizers that do not, and a part of the reason they give."""


def images_of(tokenizer: ImageTokenizer, height: int, width: int, count: int = 2):
    generator = torch.Generator().manual_seed(0)
    shape = (count, tokenizer.image_shape[0], height, width)
    return torch.rand(shape, generator=generator) * 2 - 1


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    return small_tokenizer("vqvae").eval()


def test_every_tokenizer_says_whether_it_takes_other_sizes():
    taking = {}
    for key in list_tokenizers():
        tokenizer = small_tokenizer(key)
        if tokenizer.why_fixed_size() is None:
            taking[key] = tokenizer.size_multiple
        else:
            assert ONE_SIZE[key] in str(tokenizer.why_fixed_size())
    assert taking == ANY_SIZE


@pytest.mark.parametrize("key", ONE_SIZE)
def test_a_tokenizer_of_one_size_says_why_and_offers_tiles(key):
    tokenizer = small_tokenizer(key).eval()
    for attempt in (
        lambda: tokenizer.at_size(32),
        lambda: tokenizer.token_spec_at((16, 32)),
        lambda: tokenizer.reconstruct(images_of(tokenizer, 20, 32)),
        lambda: tokenizer.reconstruct(images_of(tokenizer, 20, 32), tile=8),
    ):
        with pytest.raises(InputError, match=f"{ONE_SIZE[key]}.*tiles of 16×16") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    images = images_of(tokenizer, 20, 33)
    assert tokenizer.reconstruct(images, tile=16).shape == images.shape


@pytest.mark.parametrize(
    ("extractor", "reason"), [("convolution", None), ("transformer", "position for each patch")]
)
def test_the_extractor_decides_whether_fqvae_takes_other_sizes(extractor, reason):
    tokenizer = small_tokenizer("fqvae", extractor=extractor, num_tokens=16, quantizer="ema")
    found = tokenizer.why_fixed_size()
    assert found is None if reason is None else reason in found


def test_codebooks_of_places_keep_a_grid_at_its_size():
    tokenizer = small_tokenizer("vqvae", quantizer={"name": "ema", "num_codebooks": 4})
    with pytest.raises(InputError, match="several codebooks, each for some places"):
        tokenizer.eval().at_size(32)


def test_a_class_that_says_nothing_keeps_its_size():
    class Silent(type(small_tokenizer("vqvae"))):
        fixed_size = ImageTokenizer.fixed_size

    options: Any = {"image_size": 16}
    tokenizer = Silent(**options).eval()
    with pytest.raises(InputError, match="its class does not say"):
        tokenizer.at_size(32)


# -- another size, the same weights ----------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["vq", "rq", "hq", "tree", "residual_fsq"])
def test_quantizers_of_several_levels_go_along(quantizer):
    tokenizer = small_tokenizer("vqvae", quantizer=quantizer).eval()
    images = images_of(tokenizer, 8, 20)
    there = tokenizer.at_size((8, 20))
    with torch.no_grad():
        indices = there.encode(images)
        assert torch.equal(indices, there(images).indices)
        assert there.decode(indices).shape == images.shape


def test_the_weights_are_shared_and_the_tokenizer_stays_as_it_was(vqvae):
    spec, config = vqvae.token_spec, dict(vqvae.config)
    there = vqvae.at_size((8, 20))
    assert (there.image_shape, there.latent_shape) == ((1, 8, 20), (8, 2, 5))
    assert there.token_spec.levels[0].shape == (2, 5)
    assert there.token_spec == vqvae.token_spec_at((8, 20))
    assert vqvae.token_spec is spec
    assert vqvae.image_shape == (1, 16, 16)
    assert vqvae.quantizer.num_tokens == 16
    assert there.quantizer.num_tokens == 10
    pairs = zip(vqvae.parameters(), there.parameters(), strict=True)
    assert all(first is second for first, second in pairs)
    assert dict(there.config) == config
    assert vqvae.at_size(16) is vqvae
    back = there.at_size(16)
    images = images_of(vqvae, 16, 16)
    assert torch.equal(back.encode(images), vqvae.encode(images))
    vqvae.to(torch.float64)
    assert there.dtype == torch.float64
    assert torch.equal(there.quantizer.codebook, vqvae.quantizer.codebook)


@torch.no_grad()
def test_local_tokens_do_not_depend_on_the_size_of_the_image():
    # 4x4 convolutions of stride 2, then 3x3: a token sees less than 16 pixels on either side
    tokenizer = small_tokenizer("vqvae", num_blocks=0).eval()
    large = images_of(tokenizer, 64, 48, 1)
    there = tokenizer.at_size((64, 48))
    codebook: Any = tokenizer.quantizer.codebook
    codebook[0] = there.encode_latents(large).flatten(2)[0, :, ::6].T
    whole = there.encode(large).view(16, 12)
    part = tokenizer.at_size((48, 48)).encode(large[..., 16:, :]).view(12, 12)
    assert torch.equal(whole[8:12], part[4:8])
    assert len(whole[8:12].unique()) > 5


def test_an_image_tokenizer_at_another_size_is_not_trained(vqvae, tmp_path):
    there = vqvae.at_size(32)
    with pytest.raises(InputError, match="not trained"):
        there.train()
    with pytest.raises(InputError, match=re.escape("call eval() first")):
        vqvae.train().at_size(32)
    there.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).image_shape == (1, 16, 16)


def test_a_trained_tokenizer_is_loaded_at_another_size(vqvae, tmp_path):
    vqvae.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, image_size=(20, 8))
    images = images_of(vqvae, 20, 8)
    assert torch.equal(loaded.encode(images), vqvae.at_size((20, 8)).encode(images))
    assert load_tokenizer(tmp_path, image_size=32).token_spec.num_tokens == 64
    for size, what in {18: "18×18 is not a multiple of 4.*20×20", 0: "not a number of pix"}.items():
        with pytest.raises(InputError, match=what):
            load_tokenizer(tmp_path, image_size=size)
    for size in ("32", (8, 8, 8), (8, -4), True, 8.0):
        with pytest.raises(InputError, match="is not a number of pixels or"):
            load_tokenizer(tmp_path, image_size=size)


def test_images_of_another_size_are_still_refused_unless_asked_for(vqvae):
    with pytest.raises(InputError, match="at_size"):
        vqvae.encode(images_of(vqvae, 32, 32))


# -- padding ---------------------------------------------------------------------------------------


def test_mirror_is_torchs_reflection_and_goes_on_beyond_it():
    images = torch.rand(2, 3, 5, 7)
    expected = nn.functional.pad(images, (0, 3, 0, 4), mode="reflect")
    assert torch.equal(mirror_to(images, (9, 10)), expected)
    row = torch.tensor([[1.0, 2.0, 3.0]])
    assert mirror_to(row, (2, 8)).tolist() == [[1, 2, 3, 2, 1, 2, 3, 2]] * 2


def test_images_that_do_not_fit_are_padded_and_cropped_or_refused(vqvae):
    images = images_of(vqvae, 18, 23)
    padded = nn.functional.pad(images, (0, 1, 0, 2), mode="reflect")
    with torch.no_grad():
        there = vqvae.at_size((20, 24))
        expected = there.decode(there.encode(padded))[..., :18, :23]
    assert torch.equal(vqvae.reconstruct(images), expected)
    with pytest.raises(InputError, match="18×23 pixels are not a multiple of 4"):
        vqvae.reconstruct(images, pad=False)
    with pytest.raises(InputError, match="not at least 24×24"):
        vqvae.reconstruct(images, tile=24, pad=False)
    for tile in (None, 8):
        with pytest.raises(InputError, match="3×9 pixels are smaller than the 4×4"):
            vqvae.reconstruct(images_of(vqvae, 3, 9), tile=tile)
    with pytest.raises(InputError, match="not a tensor"):
        vqvae.reconstruct(images[0])


# -- tiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [(16, 16), (17, 40), (5, 33), (64, 16)])
@pytest.mark.parametrize("overlap", [0, 3, 15])
def test_tiles_cover_the_image_and_join_to_it(image, overlap):
    tiling = Tiling(image, (16, 16), overlap)
    images = torch.rand(2, 3, *image)
    tiles = tiling.cut(images)
    assert tiles.shape == (2, tiling.num_tiles, 3, 16, 16)
    assert len(tiling.corners) == tiling.num_tiles
    torch.testing.assert_close(tiling.join(tiles), images)


def test_tiles_are_blended_where_they_overlap():
    tiling = Tiling((4, 12), (4, 8), 3)
    assert tiling.corners == [(0, 0), (0, 4)]
    tiles = torch.stack([torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8)], dim=1)
    row = tiling.join(tiles)[0, 0, 0].tolist()
    assert row == pytest.approx([0, 0, 0, 0, 1 / 5, 2 / 5 + 1 / 10, 0.6, 0.8, 1, 1, 1, 1], abs=0.11)
    assert row == sorted(row)
    assert 0 < row[4] < row[7] < 1
    hard = Tiling((4, 16), (4, 8)).join(tiles)[0, 0, 0].tolist()
    assert hard == [0] * 8 + [1] * 8


def test_tokens_of_tiles_are_those_of_each_tile(vqvae):
    images = images_of(vqvae, 24, 40)
    tiling = plan_tiles(vqvae, (24, 40), tile=16)
    assert tiling == Tiling((24, 40), (16, 16), 4)
    indices = encode_tiles(vqvae, images, tiling)
    assert indices.shape == (2, tiling.num_tiles, 16) == (2, 6, 16)
    top, left = tiling.corners[4]
    alone = images[..., top : top + 16, left : left + 16]
    assert torch.equal(indices[:, 4], vqvae.encode(alone))
    decoded = decode_tiles(vqvae, indices, tiling)
    assert torch.equal(decoded, vqvae.reconstruct(images, tile=16))
    with pytest.raises(TokenError, match="6 tiles"):
        decode_tiles(vqvae, indices[:, :5], tiling)
    for overlap in (16, -1):
        with pytest.raises(InputError, match=f"overlap {overlap} is not from 0 to 15"):
            vqvae.reconstruct(images, tile=16, overlap=overlap)


def test_tiles_of_another_size_than_the_tokenizers_own(vqvae):
    images = images_of(vqvae, 40, 24)
    assert plan_tiles(vqvae, (40, 24), tile=(8, 12)).tile_size == (8, 12)
    assert vqvae.reconstruct(images, tile=(8, 12)).shape == images.shape
    with pytest.raises(InputError, match="10×10 is not a multiple of 4"):
        vqvae.reconstruct(images, tile=10)


# -- files of tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.npz", "t.json"])
def test_files_hold_tokens_of_images_of_several_sizes(vqvae, tmp_path, name):
    path, parts, tilings = tmp_path / name, [], []
    for height, width in [(16, 24), (40, 17)]:
        tilings.append(plan_tiles(vqvae, (height, width), tile=16))
        images = images_of(vqvae, height, width, 1)
        parts.append(encode_tiles(vqvae, images, tilings[-1])[0])
    write_tokens(path, torch.cat(parts).numpy(), ["a", "b"], vqvae.token_spec, tilings)
    stored = read_images(path, vqvae)
    assert [image.name for image in stored] == ["a", "b"]
    assert [image.tiling for image in stored] == tilings
    assert all(torch.equal(image.indices, part) for image, part in zip(stored, parts, strict=True))
    with pytest.raises(TokenError, match="in tiles"):
        read_tokens(path, vqvae.token_spec)


@pytest.mark.parametrize(
    ("size", "overlap", "images"),
    [
        (16, 4, [[16, 1 << 30]]),
        (16, 16, [[16, 16]]),
        (16, None, [[16, 16]]),
        (16, 0, []),
        (16, 0, [[16, 32]]),
        (16, 0, [16]),
        ("16", 0, [[16, 16]]),
    ],
)
def test_a_file_that_describes_no_tiles_is_one_line(vqvae, tmp_path, size, overlap, images):
    path = tmp_path / "t.json"
    content = {"token_spec": vqvae.token_spec.to_dict(), "files": ["a"], "indices": [[0] * 16]}
    content["tiles"] = {"size": size, "overlap": overlap, "images": images}
    path.write_text(json.dumps(content))
    if (size, overlap, images) == (16, 0, [16]):
        assert len(read_images(path, vqvae)) == 1  # one number is a square
        return
    with pytest.raises(DataError) as caught:
        read_images(path, vqvae)
    assert "\n" not in str(caught.value)


# -- commands --------------------------------------------------------------------------------------


@pytest.fixture
def folder(vqvae, tmp_path):
    vqvae.save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    for number, size in enumerate([(19, 33), (40, 16)]):
        pixels = generator.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def pixels_of(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


@pytest.fixture
def ran(run):
    def call(*words):
        status, out, err = run(*words)
        assert status == 0, err
        return out

    return call


def test_commands_take_images_at_their_own_sizes(folder, ran):
    model, images = str(folder / "model"), [str(folder / f"{i}.png") for i in range(2)]
    for more in (["--original"], ["--tile", "16"], ["--tile", "8", "--overlap", "0"]):
        out = ran("reconstruct", model, *images, "--out", str(folder / "grid.png"), *more)
        assert "2 images" in out
        assert "PSNR" in out
    assert "64 tokens" in ran(
        "encode", model, *images, "--out", str(folder / "t.npz"), "--image-size", "16x64"
    )
    ran("decode", model, str(folder / "t.npz"), "--out", str(folder / "same"))
    assert pixels_of(folder / "same" / "0.png").shape == (16, 64)
    ran("encode", model, *images, "--out", str(folder / "t.npz"), "--tile", "16")
    ran("decode", model, str(folder / "t.npz"), "--out", str(folder / "own"))
    shapes = [pixels_of(folder / "own" / f"{i}.png").shape for i in range(2)]
    assert shapes == [(19, 33), (40, 16)]
    vqvae = load_tokenizer(model)
    image = pixels_of(images[0])[None, None] / 127.5 - 1
    decoded = pixels_of(folder / "own" / "0.png") / 127.5 - 1
    expected = vqvae.reconstruct(image, tile=16)[0, 0].clamp(-1, 1)
    torch.testing.assert_close(decoded, expected, atol=1 / 127, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "16x"], "--image-size 16x is no size"),
        (["--image-size", "18"], "18×18 is not a multiple of 4"),
        (["--image-size", "16", "--tile", "16"], "give one of them"),
        (["--overlap", "2"], "give --tile too"),
        (["--tile", "16", "--overlap", "16"], "overlap 16 is not from 0 to 15"),
        (["--tile", "6"], "6×6 is not a multiple of 4"),
        (["--tile", "100000"], "tiles of 100000×100000 pixels are far larger than images of"),
    ],
)
def test_options_that_do_not_fit_are_one_line(folder, refused, options, message):
    picture = ["--out", str(folder / "grid.png")]
    words = ["reconstruct", str(folder / "model"), str(folder / "0.png"), *picture]
    assert message in refused(*words, *options)


# -- measuring -------------------------------------------------------------------------------------


def test_numbers_at_original_sizes(folder, vqvae, ran):
    (folder / "images").mkdir()
    for number in range(2):
        (folder / f"{number}.png").rename(folder / "images" / f"{number}.png")
    config = config_for_path(folder / "images").model_copy(update={"split": "train"})
    config = config.model_copy(update={"num_held_out": 0})
    images: Any = build_originals(config, 1)
    assert sorted(tuple(item["images"].shape) for item in images) == [(1, 19, 33), (1, 40, 16)]
    whole = evaluate_originals(vqvae, images)
    tiles = evaluate_originals(vqvae, images, Sizing(16, 0))
    for result, sizing in ((whole, {}), (tiles, {"tile": 16, "overlap": 0})):
        values = []
        for item, found in zip(images, result["images"], strict=True):
            image = item["images"][None]
            values.append(float(psnr(image, vqvae.reconstruct(image, **sizing))))
            assert found["psnr"] == pytest.approx(values[-1])
        assert result["metrics"]["psnr"] == pytest.approx(np.mean(values))
    by_size = {tuple(found["size"]): found for found in whole["images"]}
    assert by_size[19, 33]["bits"] == 5 * 9 * 5  # 20x36 pixels in squares of 4, 32 codes
    assert [found["tiles"] for found in whole["images"]] == [1, 1]
    assert sorted(found["tiles"] for found in tiles["images"]) == [3, 6]
    assert tiles["bits_per_pixel"] == pytest.approx(9 * 16 * 5 / (19 * 33 + 40 * 16))
    assert whole["protocol"]["id"] != tiles["protocol"]["id"]
    assert whole["protocol"]["reference"] == tiles["protocol"]["reference"]
    with pytest.raises(InputError, match=r"image \S+: images of \d+×\d+ pixels are not a multiple"):
        evaluate_originals(vqvae, images, Sizing(pad=False))

    model, out = str(folder / "model"), folder / "result.json"
    words = ["eval", model, "--data", str(folder / "images"), "--split", "train", "num_held_out=0"]
    assert "bits_per_pixel" in ran(*words, "--tile", "16", "--overlap", "0", "--out", str(out))
    assert json.loads(out.read_text())["metrics"] == tiles["metrics"]
    again = ran("eval", "--verify", str(out), "--data", str(folder / "images"))
    assert "at their own sizes" in again
    assert "pass: all that" in again


def test_photos_are_measured_where_no_training_crop_is():
    config = DataConfig.model_validate({"name": "photos", "split": "test"})
    held_out: Any = build_originals(config, 3)
    train: Any = build_originals(config.model_copy(update={"split": "train"}), 3)
    assert len(held_out) == len(train) == 9
    for one, other in zip(held_out, train, strict=True):
        assert one["images"].shape[:2] == other["images"].shape[:2]
        assert one["images"].shape[2] < other["images"].shape[2]


def test_originals_that_cannot_be_read_are_named(folder):
    (folder / "0.png").write_bytes(b"no image")
    config = config_for_path(folder).model_copy(update={"split": "train", "num_held_out": 0})
    with pytest.raises(DataError, match=r"0\.png"):
        build_originals(config, 1)
    with pytest.raises(InputError, match="has not"):
        Sizing.from_dict({"tile": 3})
