"""The data sets that come with spectok: digits, photos, shapes, and the presets' cards."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from spectok.data import DataConfig, DatasetCard, DatasetSource, Rows, build_dataset
from spectok.data.builtin import builtin_sources
from spectok.data.photos import _part, photographs
from spectok.data.shapes import COLOURS, COMBINATIONS, SHAPES, SIZES, draw_shapes, is_unseen
from spectok.errors import ConfigError, DataError, UnknownNameError
from spectok.plugins.registry import get_dataset, list_datasets

PAPERS = {
    "mnist": (1, 28),
    "mnist32": (1, 32),
    "cifar10": (3, 32),
    "svhn": (3, 32),
    "celeba64": (3, 64),
    "celeba64_crop140": (3, 64),
    "celeba256": (3, 256),
    "lsun_church128": (3, 128),
    "ffhq256": (3, 256),
    "imagenet64": (3, 64),
    "imagenet128": (3, 128),
    "imagenet256": (3, 256),
    "mm_celebahq256": (3, 256),
}


def test_every_builtin_is_registered_and_described():
    assert set(builtin_sources()) <= set(list_datasets())
    for name, source in builtin_sources().items():
        card = source.describe()
        assert card.summary, name
        assert card.citation, name
        assert source.preprocessing(DataConfig(name=name)).image_shape == (
            card.channels,
            card.image_size,
            card.image_size,
        )


def test_listing_data_sets_imports_nothing_heavy():
    code = (
        "import sys; from spectok.data.builtin import builtin_sources;"
        "[s.describe() for s in builtin_sources().values()];"
        "print({'torch', 'datasets', 'sklearn', 'skimage'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


@pytest.mark.parametrize("name", PAPERS)
def test_presets_have_the_shapes_of_their_papers(name):
    channels, size = PAPERS[name]
    preprocessing = get_dataset(name).preprocessing(DataConfig(name=name))
    assert preprocessing.image_shape == (channels, size, size)


def test_digits_are_split_by_class_and_share_no_image():
    train, test = (build_dataset(DataConfig(split=s)) for s in ("train", "test"))
    assert (len(train), len(test)) == (1497, 300)
    assert train.image_shape == (1, 16, 16)
    assert train.num_classes == 10
    assert np.bincount(test.labels).tolist() == [30] * 10
    names = {d.name_of(i) for d in (train, test) for i in range(len(d))}
    assert len(names) == 1797


def test_digits_are_the_real_ones_with_their_labels():
    dataset = build_dataset(DataConfig(image_size=8))
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    number = int(dataset.name_of(5).removeprefix("digit "))
    item = dataset[5]
    assert item["label"] == labels[number]
    shown = (item["images"].reshape(-1).numpy() + 1) * 8
    assert np.abs(shown - pixels[number]).max() < 0.05  # 16 grey levels, rounded to 1/255


@pytest.mark.parametrize("name", ["digits", "photos", "shapes"])
def test_items_are_float_images_in_range(name):
    dataset = build_dataset(DataConfig(name=name, limit=40))
    item = dataset[7]
    assert len(dataset) == 40
    assert item["images"].shape == dataset.image_shape
    assert item["images"].dtype == torch.float32
    assert -1 <= item["images"].min() < item["images"].max() <= 1
    assert item["index"] == 7
    assert 0 <= item["label"] < dataset.num_classes
    assert ("caption" in item) == dataset.has_captions == (name == "shapes")


@pytest.mark.parametrize("name", ["photos", "shapes"])
def test_an_image_does_not_depend_on_how_many_are_made(name):
    few, more = (build_dataset(DataConfig(name=name, limit=n)) for n in (5, 30))
    assert np.array_equal(few.uint8_images(), more.uint8_images()[:5])


def test_photos_train_and_test_show_disjoint_parts():
    for photo in photographs().values():
        train, test = _part(photo, "train"), _part(photo, "test")
        assert train.width + test.width == photo.shape[1]
        assert train.height == test.height == photo.shape[0]
        assert np.array_equal(np.asarray(test), photo[:, train.width :])


def test_shapes_keeps_combinations_but_no_word_from_training():
    train, test, unseen = (
        build_dataset(DataConfig(name="shapes", split=s, limit=200))
        for s in ("train", "test", "unseen")
    )
    assert set(test.labels) == set(train.labels)
    assert not set(unseen.labels) & set(train.labels)
    assert len(set(unseen.labels)) == sum(map(is_unseen, range(96))) == 16
    words = {word for i in range(len(train)) for word in train[i]["caption"].split()}
    assert words == {"a", *SIZES, *COLOURS, *SHAPES}
    assert train[0]["caption"] == "a " + " ".join(COMBINATIONS[train[0]["label"]])


def test_shapes_can_be_told_apart_at_32_pixels():
    # Size by area within a shape; shape by outline at equal size, place and colour.
    draws = np.full((1, 7), 0.5)
    label = {words: k for k, words in enumerate(COMBINATIONS)}
    for shape in SHAPES:
        areas = {}
        for size in SIZES:
            image = draw_shapes(np.array([label[size, "white", shape]]), draws, 32)
            areas[size] = (image[0, :, :, 0] > 128).sum()
        assert areas["large"] > 2.5 * areas["small"] > 100
    for size, (one, other) in itertools.product(SIZES, itertools.combinations(SHAPES, 2)):
        labels = np.array([label[size, "white", one], label[size, "white", other]])
        first, second = draw_shapes(labels, np.repeat(draws, 2, axis=0), 32)[:, :, :, 0] > 128
        assert (first ^ second).sum() > 0.15 * (first | second).sum(), (size, one, other)


def test_shapes_stay_inside_the_picture():
    labels = np.arange(96)
    for corner in (0.0, 0.999):
        draws = np.full((96, 7), corner)
        images = draw_shapes(labels, draws, 32).astype(int)
        border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
        assert np.ptp(border, axis=1).max() <= 1


def test_builtins_refuse_a_path_and_unknown_splits():
    with pytest.raises(ConfigError, match=r"takes no path.*folder"):
        build_dataset(DataConfig(name="digits", path="somewhere"))
    with pytest.raises(DataError, match="no split 'validation'; it has train, test"):
        build_dataset(DataConfig(name="photos", split="validation"))
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        build_dataset(DataConfig(name="digit"))


class Stripes(DatasetSource):
    """A third party's data set, as small as one can be."""

    def describe(self):
        return DatasetCard("stripes", image_size=4, channels=1)

    def load(self, config):
        return Rows(images=[np.eye(6, dtype=np.uint8) * 255] * 3)


def test_a_third_party_source_needs_two_methods():
    from spectok.data.dataset import ImageDataset

    source, config = Stripes(), DataConfig(name="stripes")
    dataset = ImageDataset(source.load(config), source.preprocessing(config))
    assert len(dataset) == 3
    assert dataset[0]["images"].shape == (1, 4, 4)
    assert dataset.num_classes is None
    assert set(dataset[0]) == {"images", "index"}
