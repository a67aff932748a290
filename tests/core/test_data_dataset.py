"""Preprocessing, augmentation, the item contract, the report and the fingerprint."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from spectok.data import DataConfig, ImageDataset, Preprocessing, Rows, build_dataset
from spectok.data.augment import Augmentation, generator_for, shift
from spectok.data.decode import UnreadableImage
from spectok.data.preprocessing import fit_box
from spectok.errors import ConfigError, DataError
from spectok.plugins.registry import get_dataset


def gradient(width, height):
    """An RGB image whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


def preset(name, **options):
    return get_dataset(name).preprocessing(DataConfig(name=name, **options))


class TestPreprocessing:
    def test_celeba_croppings_show_different_parts(self):
        image = gradient(178, 218)
        wide, tight = preset("celeba64")(image), preset("celeba64_crop140")(image)
        # Shorter side 178 -> 64, height 78, crop 7 rows each side; against the central 140.
        assert np.abs(wide[0, 0].astype(int) - (np.arange(64) + 0.5) * 178 / 64).max() <= 1.5
        assert np.abs(wide[1, :, 0].astype(int) - (np.arange(64) + 7.5) * 218 / 78).max() <= 1.5
        assert np.abs(tight[0, 0].astype(int) - 19 - (np.arange(64) + 0.5) * 140 / 64).max() <= 1.5
        assert (
            np.abs(tight[1, :, 0].astype(int) - 39 - (np.arange(64) + 0.5) * 140 / 64).max() <= 1.5
        )

    def test_celeba256_keeps_the_image_and_records_its_place(self):
        preprocessing = preset("celeba256")
        image = gradient(178, 218)
        assert preprocessing.interior == (19, 39, 218, 178)
        pixels = preprocessing(image)
        top, left, height, width = preprocessing.interior
        inside = pixels[:, top : top + height, left : left + width]
        assert np.array_equal(inside, np.asarray(image).transpose(2, 0, 1))
        assert pixels.sum() == inside.sum()
        assert preprocessing.to_dict()["interior"] == [19, 39, 218, 178]
        with pytest.raises(UnreadableImage, match="100×100, where 178×218 is expected"):
            preprocessing(gradient(100, 100))

    @pytest.mark.parametrize(("side", "first"), [(8, 2), (9, 2), (11, 4)])
    def test_a_crop_that_cannot_be_central_begins_at_the_even_pixel(self, side, first):
        pixels = Preprocessing((("center_crop", 4),))(gradient(side, 8))
        assert pixels[0, 0].tolist() == [first, first + 1, first + 2, first + 3]

    def test_fit_never_enlarges(self):
        assert fit_box(178, 218, 128) == (0, 11, 128, 105)
        assert fit_box(10, 20, 256) == (118, 123, 20, 10)

    def test_mnist_is_padded_to_32_or_resized(self):
        image = Image.fromarray(np.full((28, 28), 200, np.uint8))
        padded = preset("mnist", image_size=32)(image)
        assert padded.shape == (1, 32, 32)
        assert (padded[0, 2:30, 2:30] == 200).all()
        assert padded.sum() == 28 * 28 * 200
        assert (preset("mnist32")(image) == 200).all()

    def test_stretch_is_antialiased(self):
        stripes = np.zeros((64, 64), np.uint8)
        stripes[:, ::2] = 255
        small = Preprocessing((("stretch", 8),), channels=1, filter="bilinear")(
            Image.fromarray(stripes)
        )
        assert np.abs(small.astype(int) - 127).max() <= 16

    def test_transparency_is_composited_on_white(self):
        clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
        half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
        grey_clear = Image.new("LA", (8, 8), (0, 0))
        preprocessing = Preprocessing.resize_and_crop(8)
        assert (preprocessing(clear) == 255).all()
        assert abs(int(preprocessing(half)[0, 0, 0]) - 127) <= 1
        assert (preprocessing(grey_clear) == 255).all()
        assert preprocessing.to_dict()["transparency"] == "composited on white"

    def test_modes_become_grey_or_rgb(self):
        sixteen = Image.fromarray(np.full((8, 8), 40000, np.uint16))
        palette = gradient(8, 8).convert("P")
        one_bit = Image.new("1", (8, 8), 1)
        for image in (sixteen, palette, one_bit, Image.new("CMYK", (8, 8)), Image.new("L", (8, 8))):
            assert Preprocessing.resize_and_crop(8, 1)(image).shape == (1, 8, 8)
            assert Preprocessing.resize_and_crop(8, 3)(image).shape == (3, 8, 8)
        assert (Preprocessing.resize_and_crop(8, 1)(sixteen) == 40000 >> 8).all()
        with pytest.raises(UnreadableImage, match="floating-point"):
            Preprocessing.resize_and_crop(8)(Image.new("F", (8, 8)))

    def test_camera_orientation_is_applied(self):
        stream, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 3  # upside down
        image = gradient(16, 16)
        image.save(stream, "png", exif=exif)
        turned = Preprocessing.resize_and_crop(16)(Image.open(stream))
        assert np.array_equal(turned, np.asarray(image).transpose(2, 0, 1)[:, ::-1, ::-1])

    def test_steps_must_end_in_a_square(self):
        with pytest.raises(ConfigError, match="add a center_crop"):
            Preprocessing((("resize_shorter", 8),))


class TestAugmentation:
    def test_shift_repeats_the_edge(self):
        image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
        assert shift(image, 1, 0)[0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
        assert shift(image, 0, -1)[0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]

    def test_it_is_a_function_of_seed_epoch_and_index(self):
        config = DataConfig(limit=30, horizontal_flip=True, max_shift=2)
        one, two = (build_dataset(config, seed=3) for _ in range(2))
        one.set_epoch(4)
        two.set_epoch(4)
        forward = [one[i]["images"] for i in range(30)]
        torch.rand(100)
        backward = [two[i]["images"] for i in reversed(range(30))][::-1]
        assert all(torch.equal(a, b) for a, b in zip(forward, backward))
        for change in ({"epoch": 5}, {"seed": 4}):
            other = build_dataset(config, seed=change.get("seed", 3))
            other.set_epoch(change.get("epoch", 4))
            same = [torch.equal(a, other[i]["images"]) for i, a in enumerate(forward)]
            assert sum(same) < 10

    def test_workers_see_the_same_pixels(self):
        dataset = build_dataset(DataConfig(limit=12, horizontal_flip=True, max_shift=2))
        dataset.set_epoch(2)
        alone, shared = (
            [b["images"] for b in torch.utils.data.DataLoader(dataset, 4, num_workers=n)]
            for n in (0, 2)
        )
        assert all(torch.equal(a, b) for a, b in zip(alone, shared))

    def test_it_is_off_outside_training(self):
        config = DataConfig(limit=8, horizontal_flip=True, max_shift=3)
        plain = build_dataset(DataConfig(limit=8))
        quiet, noisy = build_dataset(config, train=False), build_dataset(config)
        assert all(torch.equal(plain[i]["images"], quiet[i]["images"]) for i in range(8))
        assert not all(torch.equal(plain[i]["images"], noisy[i]["images"]) for i in range(8))
        assert plain.fingerprint == quiet.fingerprint == noisy.fingerprint

    def test_half_of_the_images_are_mirrored(self):
        image = np.arange(4, dtype=np.uint8).reshape(1, 1, 4)
        flip = Augmentation(horizontal_flip=True)
        count = sum(flip(image, generator_for(0, 0, i))[0, 0, 0] == 3 for i in range(400))
        assert 160 < count < 240


def rows_of(count=4, **columns):
    images = [np.full((6, 6), 10 * i, np.uint8) for i in range(count)]
    return Rows(images, **columns)


GREY = Preprocessing.resize_and_crop(6, 1)


class TestImageDataset:
    def test_pixels_map_to_plus_minus_one(self):
        dataset = ImageDataset(
            Rows([np.array([[0, 255], [127, 128]], np.uint8)]), Preprocessing.resize_and_crop(2, 1)
        )
        expected = torch.tensor([0.0, 255, 127, 128]) / 127.5 - 1
        assert torch.equal(dataset[0]["images"].flatten(), expected)

    def test_items_do_not_share_memory_with_the_data(self):
        dataset = ImageDataset(rows_of(), GREY)
        dataset[1]["images"].zero_()
        assert dataset[1]["images"].unique().item() == pytest.approx(10 / 127.5 - 1)

    def test_lazy_and_decoded_agree(self):
        kept, lazy = (ImageDataset(rows_of(), GREY, memory_limit=m) for m in (1 << 20, 0))
        assert (kept.report.checked, lazy.report.checked) == ("decoded", "headers")
        assert all(torch.equal(kept[i]["images"], lazy[i]["images"]) for i in range(4))
        assert np.array_equal(kept.uint8_images(), lazy.uint8_images())

    def test_damage_that_headers_do_not_show(self, tmp_path):
        stream = io.BytesIO()
        Image.effect_noise((64, 64), 80).save(stream, "png")
        content = bytearray(stream.getvalue())
        content[200:400] = bytes(200)
        for name, data in {"bad.png": content, "good.png": stream.getvalue()}.items():
            (tmp_path / name).write_bytes(data)
        paths = [str(tmp_path / "good.png"), str(tmp_path / "bad.png")]
        rows = Rows(paths, ["good.png", "bad.png"])  # of images of 8 bits, the first is looked into
        with pytest.raises(DataError, match=r"bad\.png.*skip_unreadable"):
            ImageDataset(rows, GREY, memory_limit=0)[1]
        dataset = ImageDataset(rows, GREY, memory_limit=0, skip_unreadable=True)
        with pytest.warns(UserWarning, match=r"bad\.png cannot be read"):
            second = dataset[1]["images"]
        assert torch.equal(second, dataset[0]["images"])

    def test_every_caption_has_one_turn_per_round_in_training_only(self):
        rows = rows_of(captions=[("a", "b", "c")] * 4)
        training = ImageDataset(rows, GREY, augmentation=Augmentation(), seed=1)
        turns = []
        for epoch in range(12):
            training.set_epoch(epoch)
            turns.append([training[i]["caption"] for i in range(4)])
            assert ["abc"[training[i]["caption_number"]] for i in range(4)] == turns[-1]
        for image in zip(*turns):
            rounds = [image[start : start + 3] for start in range(0, 12, 3)]
            assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
            assert len(set(rounds)) > 1  # in another order now and then
        assert len({tuple(image) for image in zip(*turns)}) == 4
        fixed = ImageDataset(rows, GREY)
        assert [fixed[i]["caption"] for i in range(4)] == ["a"] * 4
        assert fixed.captions_of(2) == ("a", "b", "c")

    def test_indices_outside(self):
        dataset = ImageDataset(rows_of(), GREY)
        for index in (4, -1):
            with pytest.raises(IndexError, match=f"index {index} is outside a data set of 4"):
                dataset[index]

    def test_it_travels_to_worker_processes(self):
        dataset = pickle.loads(pickle.dumps(build_dataset(DataConfig(name="shapes", limit=5))))
        assert dataset[4]["caption"].startswith("a ")

    def test_fingerprint_follows_what_matters(self):
        base = ImageDataset(rows_of(), GREY).fingerprint
        assert ImageDataset(rows_of(), GREY, seed=9, name="other").fingerprint == base
        others = [
            ImageDataset(rows_of(3), GREY),
            ImageDataset(rows_of(), Preprocessing.resize_and_crop(6, 1, "lanczos")),
            ImageDataset(rows_of(labels=np.arange(4)), GREY),
            ImageDataset(rows_of(captions=[("x",)] * 4), GREY),
            ImageDataset(rows_of(), GREY, memory_limit=0),
        ]
        assert len({base, *(d.fingerprint for d in others)}) == 6

    def test_a_large_set_is_not_known_by_names_and_sizes_alone(self, tmp_path):
        found = set()
        for seed in range(2):
            rng = np.random.default_rng(seed)
            for number in range(3):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
            rows = Rows([str(tmp_path / f"{number}.bmp") for number in range(3)])
            found.add(ImageDataset(rows, GREY, memory_limit=0).fingerprint)
        assert len(found) == 2

    def test_fingerprint_of_digits_is_stable_across_machines_and_versions(self):
        dataset = build_dataset(DataConfig(image_size=8))
        assert dataset.fingerprint == "ab97986dae36328c0d68b1c60c779087"

    def test_shapes_written_in_signatures(self, checked_shapes):
        dataset = build_dataset(
            DataConfig(name="shapes", limit=3, max_shift=1, horizontal_flip=True)
        )
        assert dataset[0]["images"].shape == (3, 32, 32)
        assert dataset.uint8_images().shape == (3, 3, 32, 32)


class TestReport:
    def test_it_counts_what_is_there(self):
        images = [np.zeros((4, 6), np.uint8)] * 2 + [np.zeros((8, 8, 3), np.uint8)]
        rows = Rows(
            images,
            labels=np.array([0, 2, 2]),
            captions=[("one two",), ("three", "four"), ()],
            class_names=["x", "y", "z"],
        )
        report = ImageDataset(rows, GREY, name="mine/train").report
        facts = report.to_dict()
        assert facts["count"] == 3
        assert facts["sizes"] == {"6x4": 2, "8x8": 1}
        assert facts["modes"] == {"L": 2, "RGB": 1}
        assert facts["labels"] == {"x": 1, "y": 0, "z": 2}
        expected = {"images": 2, "captions": 3, "mean_words": 1.33, "max_words": 2}
        assert facts["captions"] == expected
        assert json.loads(json.dumps(facts)) == facts
        assert "2 images have a side below 6 pixels" in str(report)

    def test_it_renders(self):
        report = build_dataset(DataConfig(limit=5)).report
        stream = io.StringIO()
        Console(file=stream, width=100).print(report)
        for text in (stream.getvalue(), str(report)):
            assert "digits/train" in text
            assert "5, served as 16×16 grey" in text


class TestConfig:
    @pytest.mark.parametrize(
        "options",
        [
            {"channels": 2},
            {"limit": 0},
            {"max_shift": -1},
            {"nmae": "x"},
            {"limit": "3"},
            {"limit": True},
        ],
    )
    def test_wrong_values_are_refused(self, options):
        with pytest.raises(ValidationError):
            DataConfig(**options)

    def test_it_round_trips_through_json(self, tmp_path):
        config = DataConfig(name="folder", path=tmp_path, channels=1)
        assert config.path == str(tmp_path)
        assert DataConfig(**json.loads(config.model_dump_json())) == config
