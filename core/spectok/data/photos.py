"""``photos``: crops of the real photographs that scikit-image and scikit-learn ship."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectok.data.digits import check_builtin
from spectok.data.sources import DatasetCard, DatasetSource

if TYPE_CHECKING:
    from PIL.Image import Image

    from spectok.data.data_config import DataConfig
    from spectok.data.rows import Rows

_COUNTS = {"train": 4096, "test": 512}
_SEEDS = {"train": 11, "test": 12}
_TEST_PART = 0.25
_SKIMAGE = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "rocket")
_SKLEARN = ("china.jpg", "flower.jpg")


class Photos(DatasetSource):
    """4,096 training and 512 test crops at several scales, in RGB.

    The rightmost quarter of every photograph is for ``test``, the rest for ``train``: no pixel is
    in both. The side of a crop is drawn log-uniformly between ``image_size`` and the largest that
    fits, and the crop is then resized (bicubic). Labels say which photograph a crop is from.
    """

    def describe(self) -> DatasetCard:
        """Return the card."""
        return DatasetCard(
            "crops of nine real photographs; needs no download",
            image_size=32,
            num_classes=len(_SKIMAGE) + len(_SKLEARN) + 1,
            citation="photographs shipped with scikit-image and scikit-learn",
        )

    def load(self, config: DataConfig) -> Rows:
        """Return one split; image ``i`` does not depend on how many are requested."""
        from spectok.data.rows import Rows

        check_builtin(config, self.describe())
        size = self.preprocessing(config).image_size
        photos = photographs()
        parts = [_part(photo, config.split) for photo in photos.values()]
        count = min(_COUNTS[config.split], config.limit or _COUNTS[config.split])
        images, labels = [], np.arange(count) % len(parts)
        for index in range(count):
            generator = np.random.default_rng((_SEEDS[config.split], index))
            images.append(_random_crop(parts[labels[index]], size, generator))
        names = [f"crop {index}" for index in range(count)]
        return Rows(images, names, labels.astype(np.int64), class_names=list(photos))

    def originals(self, config: DataConfig) -> Rows:
        """Return that part of each photograph from which the crops of a split are, whole."""
        from spectok.data.rows import Rows

        photos = photographs()
        parts = [_part(photo, config.split) for photo in photos.values()]
        return Rows(parts, list(photos), np.arange(len(parts)), class_names=list(photos))


def photographs() -> dict[str, np.ndarray]:
    """Return the photographs by name, (H, W, 3) uint8."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    photos = {name: getattr(skimage.data, name)() for name in _SKIMAGE}
    photos["motorcycle"] = skimage.data.stereo_motorcycle()[0]
    photos |= {name.removesuffix(".jpg"): load_sample_image(name) for name in _SKLEARN}
    return photos


def _part(photo: np.ndarray, split: str) -> Image:
    """Return the part of a photograph that belongs to a split."""
    from PIL import Image

    boundary = round(photo.shape[1] * (1 - _TEST_PART))
    part = photo[:, :boundary] if split == "train" else photo[:, boundary:]
    return Image.fromarray(np.ascontiguousarray(part))


def _random_crop(part: Image, size: int, generator: np.random.Generator) -> Image:
    """Return a square crop of random side and position, resized to ``size``."""
    from PIL import Image

    largest = min(part.size)
    smallest = min(size, largest)
    side = round(smallest * (largest / smallest) ** generator.random())
    left = int(generator.integers(part.width - side + 1))
    top = int(generator.integers(part.height - side + 1))
    box = (left, top, left + side, top + side)
    return part.resize((size, size), Image.Resampling.BICUBIC, box=box)
