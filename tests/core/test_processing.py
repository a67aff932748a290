"""The conventions people bring along: images of any kind, types, devices, rows of data sets."""

from __future__ import annotations

import inspect
import json
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from spectok import list_tokenizers, load_tokenizer
from spectok.data.files import load_image
from spectok.errors import CheckpointError, ConfigError, InputError
from spectok.plugins.registry import get_tokenizer
from spectok.processing import ImageProcessor
from spectok.testing.small import small_tokenizer
from spectok.training.recomputing import recompute_blocks, stop_recomputing

FILE = "preprocessor_config.json"


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return small_tokenizer("vqvae", in_channels=3).eval()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


# -- images of any kind ----------------------------------------------------------------------------


def test_one_image_in_every_form_is_one_batch(tokenizer, pixels, tmp_path):
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    channels_first = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    expected = channels_first[None] / 127.5 - 1
    forms = {
        "PIL": picture,
        "array": pixels,
        "batch of arrays": pixels[None],
        "uint8 tensor": channels_first,
        "float tensor": expected[0],
        "batch of tensors": expected,
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "bytes": (tmp_path / "a.png").read_bytes(),
        "of datasets": {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
    }
    for name, form in forms.items():
        assert torch.equal(tokenizer.processor(form), expected), name
        one_of_two = [form[0] if name.startswith("batch") else form, np.zeros((9, 5), np.uint8)]
        assert tokenizer.processor(one_of_two).shape == (2, 3, 16, 16), name
    (back,) = tokenizer.processor.postprocess(expected)
    assert np.array_equal(np.asarray(back), pixels)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 24)])
def test_other_sizes_are_resized_and_cropped_as_files_are(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 27, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    processor, from_file = ImageProcessor(shape), load_image(tmp_path / "a.png", shape)
    assert torch.equal(processor(pixels)[0], from_file)
    if shape[0] == 3:  # floats are not rounded to 8 bits on the way
        floats = torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 127.5 - 1
        torch.testing.assert_close(processor(floats)[0], from_file, atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_floats_are_resized_by_the_filter_of_the_model(name):
    pixels = np.random.default_rng(0).integers(60, 190, (48, 40, 3), dtype=np.uint8)  # not clipped
    floats = torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 127.5 - 1
    processor = ImageProcessor((3, 16, 16), name)
    torch.testing.assert_close(processor(floats), processor(pixels), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "an empty list"),
        ([None], "image 0: a NoneType is no image"),
        ([np.zeros((8, 8, 3))], "image 0: an array of shape .8, 8, 3. and type float64"),
        (np.zeros((8, 8, 2), np.uint8), "image 0: an array of shape"),
        ([np.zeros((8, 8), np.uint8), torch.zeros(1, 8, 8)], "image 1: a tensor of shape"),
        (["nowhere.png"], "image 0: it cannot be read .the file is missing"),
        ([b"no image"], "image 0: it cannot be read"),
        ([torch.zeros(3, 0, 40)], "image 0: a tensor of shape .3, 0, 40. is not"),
        ([Image.new("F", (8, 8))], "image 0: floating-point pixels .* give a float tensor"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tokenizer, images, message):
    with pytest.raises(InputError, match=message) as caught:
        tokenizer.processor(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(16, 16), (20, 31)])
def test_floats_a_little_outside_are_clamped_at_every_size(tokenizer, size):
    for dtype in (torch.float32, torch.float8_e4m3fn):
        batch = tokenizer.processor(torch.full((3, *size), 3.0).to(dtype))
        assert torch.equal(batch, torch.ones(1, 3, 16, 16))


def test_a_batch_whose_channels_come_last_is_named(tokenizer):
    with pytest.raises(InputError, match=r"it takes \(B, 3, H, W\)"):
        tokenizer.reconstruct(torch.zeros(2, 16, 16, 3))


def test_the_processor_is_saved_with_the_model_and_loaded_with_it(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    saved = ImageProcessor.from_pretrained(tmp_path)
    assert saved.image_shape == load_tokenizer(tmp_path).processor.image_shape == (3, 16, 16)
    assert tokenizer.at_size((8, 32)).processor.image_shape == (3, 8, 32)
    tokenizer.at_size(32).save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path).image_shape == (3, 16, 16)
    content = json.loads((tmp_path / FILE).read_text())
    for key, value in {
        "crop_size": {"height": 8, "width": 8},
        "resample": 9,
        "image_mean": 3,
    }.items():
        (tmp_path / FILE).write_text(json.dumps(content | {key: value}))
        with pytest.raises(CheckpointError, match=FILE) as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    tokenizer.save_pretrained(tmp_path)  # replaces a file that does not fit
    assert load_tokenizer(tmp_path).image_shape == (3, 16, 16)
    (tmp_path / FILE).unlink()  # as models of earlier versions
    assert load_tokenizer(tmp_path).image_shape == (3, 16, 16)
    with pytest.raises(CheckpointError, match=f"no {FILE}"):
        ImageProcessor.from_pretrained(tmp_path)


def test_transformers_reads_the_file(tokenizer, pixels, tmp_path):
    from transformers import CLIPImageProcessor

    tokenizer.save_pretrained(tmp_path)
    theirs: Any = CLIPImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt")
    torch.testing.assert_close(
        theirs["pixel_values"], tokenizer.processor(pixels), atol=1e-5, rtol=0
    )


def test_rows_of_a_data_set_are_encoded_by_its_map(tokenizer, pixels):
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    rows = [{"picture": Image.fromarray(pixels ^ i), "label": i} for i in range(3)]
    data = datasets.Dataset.from_list(rows, features=features)
    options = {"batched": True, "batch_size": 2, "fn_kwargs": {"column": "picture"}}
    encoded = data.map(tokenizer.encode_rows, remove_columns=["picture"], **options)
    assert encoded.column_names == ["label", "tokens"]
    expected = tokenizer.encode(tokenizer.processor([row["picture"] for row in rows]))
    assert encoded[:]["tokens"] == expected.tolist()
    with pytest.raises(InputError, match="no column 'image'; there are picture, label"):
        tokenizer.encode_rows(data[:])


# -- types and devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", torch.bfloat16])
def test_a_type_is_given_by_name_or_as_itself(tokenizer, tmp_path, option, value, caplog):
    tokenizer.save_pretrained(tmp_path)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    loaded = load_tokenizer(tmp_path, **{option: value})
    cast = small_tokenizer("vqvae", in_channels=3).eval()
    cast.load_state_dict(tokenizer.state_dict())
    cast.to(torch.bfloat16)
    for model in (loaded, cast):
        assert model.dtype == torch.bfloat16
        assert model.quantizer.codebook.dtype == torch.float32
        assert torch.equal(model.encode(images), loaded.encode(images))
        assert model.decode(model.encode(images)).dtype == torch.bfloat16
    assert "float32" not in caplog.text


def test_a_model_is_loaded_onto_one_device(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for place in ("cpu", {"": "cpu"}, torch.device("cpu")):
        loaded = load_tokenizer(tmp_path, device_map=place)
        assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    for place in ("auto", "balanced", {"encoder": "cpu"}, {"": "nowhere"}):
        with pytest.raises(ConfigError, match="is no device: a model stays on one") as caught:
            load_tokenizer(tmp_path, device_map=place)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_device_that_is_not_there_is_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="device_map 'cuda:0' is not a device of this machine"):
        load_tokenizer(tmp_path, device_map="cuda:0")


def test_two_names_of_one_option_must_agree(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    agreed = load_tokenizer(tmp_path, dtype="float16", torch_dtype=torch.float16)
    assert agreed.dtype == torch.float16
    with pytest.raises(ConfigError, match="torch_dtype and dtype are two names of one option"):
        load_tokenizer(tmp_path, dtype="float16", torch_dtype="float32")


# -- gradient checkpointing ------------------------------------------------------------------------


@pytest.mark.parametrize("key", list_tokenizers())
def test_blocks_that_are_computed_again_give_the_same_gradients(key):
    torch.manual_seed(0)
    options = inspect.signature(get_tokenizer(key)).parameters
    trained = {"train_decoder": True} if "train_decoder" in options else {}
    model = small_tokenizer(key, **trained).train()
    images = torch.rand(2, *model.image_shape) * 2 - 1

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, id_):
            loss = sum(model(images).losses.values())
        torch.as_tensor(loss).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept)

    def id_(tensor):
        return tensor

    plain, numbers = gradients()
    recompute_blocks(model)
    again, fewer = gradients()
    stop_recomputing(model)
    assert len(plain) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert fewer < numbers
