"""Rates of real files: what a point says, the codecs of pillow on a mosaic, and the command."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from spectok.codec import Codec
from spectok.codec.rate_distortion import (
    QUALITIES,
    Point,
    bd_rate,
    measure_codec,
    measure_rates,
    measure_tokenizer,
)
from spectok.data import DataConfig, build_dataset
from spectok.errors import InputError
from spectok.images import to_float, to_uint8
from spectok.metrics import psnr, ssim
from spectok.testing.small import small_tokenizer

SIZE = 16


def digits(number):
    data = DataConfig(name="digits", image_size=SIZE, channels=1, split="test", limit=number)
    dataset = build_dataset(data, train=False)
    return torch.stack([dataset[i]["images"] for i in range(number)])


def hierarchical():
    torch.manual_seed(0)
    return small_tokenizer("hrvqvae", image_size=SIZE, in_channels=1).eval()


def curve(rates, offset=0.0):
    return [Point("", 0, rate, 20 + 3 * np.log2(rate) + offset, 0) for rate in rates]


def test_half_the_bits_at_every_quality_are_minus_a_half():
    anchor = curve([1, 2, 4, 8])
    halves = [Point("", 0, point.bits_per_pixel / 2, point.psnr, 0) for point in anchor]
    assert bd_rate(halves, anchor) == pytest.approx(-0.5)
    assert bd_rate(anchor, halves) == pytest.approx(1.0)
    assert bd_rate(anchor, anchor) == pytest.approx(0.0)


def test_a_single_point_is_compared_at_its_quality():
    assert bd_rate(curve([3], offset=3), curve([1, 2, 4, 8])) == pytest.approx(-0.5)


def test_curves_without_a_common_quality_are_not_compared():
    assert bd_rate(curve([1, 2]), curve([64, 128])) is None


def test_a_point_that_costs_more_and_shows_less_does_not_count():
    anchor = curve([1, 2, 4, 8])
    worse = Point("", 0, 4, anchor[1].psnr, 0)
    assert bd_rate([*anchor, worse], anchor) == pytest.approx(0.0)


def test_points_of_a_tokenizer_are_real_files_and_real_distances():
    images, codec = digits(5), Codec(hierarchical())
    points = measure_tokenizer(codec, images)
    assert [point.setting for point in points] == [
        f"{k} tokens" for k in codec.tokenizer.token_spec.decodable_prefixes if k
    ]
    assert sorted({point.bytes for point in points}) == [point.bytes for point in points]
    data = codec.compress(images)
    shown = to_float(to_uint8(codec.tokenizer.decode(codec.tokenizer.encode(images))))
    last = points[-1]
    assert last.bytes == len(data)
    assert last.bits_per_pixel == pytest.approx(8 * len(data) / images.numel())
    assert last.psnr == pytest.approx(psnr(images, shown).mean().item(), abs=1e-4)
    assert last.ssim == pytest.approx(ssim(images, shown).mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", QUALITIES)
@pytest.mark.parametrize(("number", "channels"), [(5, 1), (7, 3)])
def test_a_mosaic_is_cut_into_the_images_again(name, number, channels):
    flat = torch.linspace(-0.9, 0.9, number).view(-1, 1, 1, 1)  # each of a grey of its own
    points = measure_codec(name, flat.expand(number, channels, SIZE, SIZE))
    assert len(points) == len(QUALITIES[name])
    assert points[-1].psnr > 35  # in another order it were below 20
    photographs = digits(4).expand(4, channels, SIZE, SIZE)
    sizes = [point.bytes for point in measure_codec(name, photographs)]
    assert sizes == sorted(sizes)


def test_the_bytes_of_a_codec_are_those_of_pillow():
    images = digits(4)
    rows = to_uint8(images)[:, 0].numpy().reshape(2, 2, SIZE, SIZE).transpose(0, 2, 1, 3)
    stream = io.BytesIO()
    whole = Image.fromarray(rows.reshape(2 * SIZE, 2 * SIZE))
    whole.save(stream, format="WEBP", quality=QUALITIES["webp"][0])
    found = measure_codec("webp", images)[0].bytes
    assert found == pytest.approx(stream.getbuffer().nbytes, rel=0.02)  # saved as RGB or as grey


def test_what_cannot_be_compared_is_refused():
    codec, images = Codec(hierarchical()), digits(2)
    with pytest.raises(InputError, match="anchor png is not one of"):
        measure_rates({"a": codec}, images, anchor="png")
    with pytest.raises(InputError, match="compare tokenizers of one size"):
        measure_rates({"a": codec}, torch.zeros(2, 1, 32, 32))


def test_the_command_writes_table_numbers_and_picture(run, refused, tmp_path):
    model, out = tmp_path / "model", tmp_path / "rd"
    hierarchical().save_pretrained(model)
    status, said, errors = run("rd", model, "--data", "digits", "--limit", 6, "--out", out)
    assert status == 0, errors
    result = json.loads((out / "rd.json").read_text())
    assert result["num_images"] == 6
    assert result["protocol"]["num_images"] == 6
    assert list(result["curves"]) == [str(model), *QUALITIES]
    assert result["curves"]["webp"]["bd_rate"] == pytest.approx(0.0)
    assert (out / "rd.md").read_text().strip() in said
    with Image.open(out / "rd.png") as picture:
        assert picture.width > 500
    assert "no tokenizer is named" in refused("rd", "limit=4", "--data", "digits", "--out", out)
    assert "anchor" in refused("rd", model, "--data", "digits", "--out", out, "--anchor", "gif")
