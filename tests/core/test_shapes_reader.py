"""The reader of generated shapes: right on real ones, and not content with anything else."""

import numpy as np
import pytest

from spectok.data import DataConfig, build_dataset
from spectok.data.shapes import COMBINATIONS, caption, draw_shapes
from spectok.errors import InputError
from spectok.evaluation.shapes import read_shapes


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_real_pictures_are_read_right(split):
    config = DataConfig.model_validate({"name": "shapes", "split": split, "limit": 100})
    dataset = build_dataset(config, train=False)
    readings = read_shapes(dataset.uint8_images().transpose(0, 2, 3, 1))
    wrong = [r for i, r in enumerate(readings) if r.caption != dataset.captions_of(i)[0]]
    assert len(wrong) <= 1, wrong
    assert min(reading.overlap for reading in readings) > 0.9


@pytest.mark.parametrize("size", [24, 48])
def test_other_sizes_are_read_too(size):
    labels = np.arange(0, len(COMBINATIONS), 5)
    draws = np.random.default_rng(0).random((len(labels), 7))
    readings = read_shapes(draw_shapes(labels, draws, size))
    assert [reading.caption for reading in readings] == [caption(label) for label in labels]


def test_noise_and_a_plain_ground_show_no_shape():
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    plain = np.full((1, 32, 32, 3), 30, np.uint8)
    assert [reading.caption for reading in read_shapes(np.concatenate([noise, plain]))] == [
        None
    ] * 9


@pytest.mark.parametrize(
    "images", [np.zeros((1, 32, 32, 3)), np.zeros((1, 1, 32, 32), np.uint8), np.zeros((3, 32, 32))]
)
def test_other_arrays_are_refused(images):
    with pytest.raises(InputError, match="cannot be read as shapes; give uint8"):
        read_shapes(images)
