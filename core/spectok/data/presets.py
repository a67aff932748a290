"""The data sets of the papers, each with the preprocessing its paper states.

Every preset reads its hub id, or instead a local ``path`` (a directory of images, parquet files or
tar shards) with the same images. If the data has no test split, a part is held out; for a paper's
own partition, give directories ``train`` and ``test``. Where a paper does not name its resizing
filter, it is torchvision's default, bilinear, as in the code that the paper builds on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spectok.data.sources import DatasetCard, DatasetSource
from spectok.errors import DataError

if TYPE_CHECKING:
    from spectok.data.data_config import DataConfig
    from spectok.data.preprocessing import Preprocessing, Step
    from spectok.data.rows import Rows

CELEBA_SIZE = (178, 218)
"""(width, height) of the aligned CelebA images."""


@dataclass(frozen=True)
class Preset(DatasetSource):
    """A public data set under one paper's preprocessing.

    Args:
        card: What the data set is.
        steps: The geometric steps (see :class:`~spectok.data.Preprocessing`) for an image size.
        subset: Configuration name on the hub.
        columns: Column names on the hub, where they differ from ours.
        splits: Split names on the hub, where they differ from ours.
        filter: Resampling filter.
        source_size: (width, height) of every image, if a black border is added. None: no border.
    """

    card: DatasetCard
    steps: Callable[[int], tuple[Step, ...]]
    subset: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    filter: str = "bilinear"
    source_size: tuple[int, int] | None = None

    def describe(self) -> DatasetCard:
        """Return the card."""
        return self.card

    def load(self, config: DataConfig) -> Rows:
        """Return the images at ``config.path``, or else from the hub."""
        if config.path is not None:
            from spectok.data.own import load_path

            return load_path(config.path, None, config)
        if self.card.hub_id is None:
            raise DataError(
                f"{config.name!r} has no known place on the Hugging Face Hub; "
                "give a directory of its images or parquet files (--data; data.path in a "
                "recipe)"
            )
        from spectok.data.tables import read_hub

        given = {name: value for name, value in self.columns.items() if not getattr(config, name)}
        real_split = self.splits.get(config.split, config.split)
        hub_config = config.model_copy(update={**given, "split": real_split})
        return read_hub(self.card.hub_id, hub_config, self.subset)

    def preprocessing(self, config: DataConfig) -> Preprocessing:
        """Return the paper's preprocessing, at the configuration's size if it gives one."""
        from spectok.data.preprocessing import Preprocessing, fit_box

        size = config.image_size or self.card.image_size
        interior = fit_box(*self.source_size, size) if self.source_size else None
        return Preprocessing(
            self.steps(size),
            config.channels or self.card.channels,
            self.filter,  # type: ignore[arg-type]
            interior,
            self.source_size,
        )


def crop_center(size: int) -> tuple[Step, ...]:
    """Resize the shorter side, then crop the centre."""
    return ("resize_shorter", size), ("center_crop", size)


def crop_140(size: int) -> tuple[Step, ...]:
    """Crop the central 140 pixels, then resize: the tight CelebA crop of SQ-VAE and FQ-VAE."""
    return ("center_crop", 140), ("stretch", size)


def stretch(size: int) -> tuple[Step, ...]:
    """Resize to a square without keeping the aspect ratio."""
    return (("stretch", size),)


def fit(size: int) -> tuple[Step, ...]:
    """Shrink into a black square."""
    return (("fit", size),)


def pad_to_32(size: int) -> tuple[Step, ...]:
    """Pad MNIST's 28 pixels with black up to 32; resize to any other size."""
    return (("pad", size),) if 28 <= size <= 32 else (("stretch", size),)


_MNIST = "MNIST (LeCun, Cortes, Burges)"
_CELEBA = "CelebA (Liu et al., 2015), aligned images"
_IMAGENET = "ImageNet (Russakovsky et al., 2015)"
_IMAGENET_SPLITS = {"test": "validation"}  # its test labels are not public
_THREE = ("train", "validation", "test")
_RESEARCH = "non-commercial research only"


def _imagenet(size: int, paper: str) -> Preset:
    """Return ImageNet at one size."""
    card = DatasetCard(
        f"photographs of 1,000 classes at {size}×{size}; 'test' is the validation set",
        image_size=size,
        num_classes=1000,
        hub_id="ILSVRC/imagenet-1k",
        citation=f"{_IMAGENET}; {paper}",
        license=_RESEARCH,
    )
    return Preset(card, crop_center, splits=_IMAGENET_SPLITS)


PRESETS: dict[str, DatasetSource] = {
    "mnist": Preset(
        DatasetCard(
            "handwritten digits, 28×28; image_size 32 pads them with black",
            image_size=28,
            channels=1,
            num_classes=10,
            hub_id="ylecun/mnist",
            citation=f"{_MNIST}; 28 in FQ-VAE, 32 in Table 3 of QG-VAE",
        ),
        pad_to_32,
    ),
    "mnist32": Preset(
        DatasetCard(
            "handwritten digits, resized from 28×28 to 32×32",
            image_size=32,
            channels=1,
            num_classes=10,
            hub_id="ylecun/mnist",
            citation=f"{_MNIST}; resized as in VQ-WAE, the benchmark of QG-VAE",
        ),
        stretch,
    ),
    "cifar10": Preset(
        DatasetCard(
            "tiny photographs of ten classes, 32×32",
            image_size=32,
            num_classes=10,
            hub_id="uoft-cs/cifar10",
            citation="CIFAR-10 (Krizhevsky, 2009); FQ-VAE, QG-VAE, HR-VQVAE",
        ),
        stretch,
    ),
    "svhn": Preset(
        DatasetCard(
            "house numbers, 32×32, cropped digits",
            image_size=32,
            num_classes=10,
            hub_id="ufldl-stanford/svhn",
            citation="SVHN (Netzer et al., 2011), cropped digits; QG-VAE",
            license="non-commercial use only",
        ),
        stretch,
        subset="cropped_digits",
    ),
    "celeba64": Preset(
        DatasetCard(
            "faces, shorter side 64, central 64×64",
            image_size=64,
            splits=_THREE,
            hub_id="flwrlabs/celeba",
            citation=f"{_CELEBA}; QG-VAE's code",
            license=_RESEARCH,
        ),
        crop_center,
    ),
    "celeba64_crop140": Preset(
        DatasetCard(
            "faces, central 140×140 resized to 64×64",
            image_size=64,
            splits=_THREE,
            hub_id="flwrlabs/celeba",
            citation=f"{_CELEBA}; FQ-VAE §4.2, VQ-WAE, SQ-VAE",
            license=_RESEARCH,
        ),
        crop_140,
    ),
    "celeba256": Preset(
        DatasetCard(
            "whole faces, 178×218 centred on black 256×256; losses inside the border",
            image_size=256,
            splits=_THREE,
            hub_id="flwrlabs/celeba",
            citation=f"{_CELEBA}; QG-VAE's code (thumbnail on a black square)",
            license=_RESEARCH,
        ),
        fit,
        filter="bicubic",
        source_size=CELEBA_SIZE,
    ),
    "lsun_church128": Preset(
        DatasetCard(
            "churches, shorter side 128, central 128×128; give a local path",
            image_size=128,
            citation="LSUN church_outdoor (Yu et al., 2015); FQ-VAE §4.2 (crop: our reading)",
        ),
        crop_center,
    ),
    "ffhq256": Preset(
        DatasetCard(
            "high-quality faces, 256×256; has no test split, so a part is held out",
            image_size=256,
            hub_id="merkol/ffhq-256",
            citation="FFHQ (Karras et al., 2019); FA-VAE, HR-VQVAE",
            license="cc-by-nc-sa-4.0",
        ),
        stretch,
    ),
    "imagenet64": _imagenet(64, "QG-VAE Fig. 17"),
    "imagenet128": _imagenet(128, "QG-VAE Table 3, HR-VQVAE (crop: our reading)"),
    "imagenet256": _imagenet(256, "FA-VAE Table 1 (crop: our reading)"),
    "mm_celebahq256": Preset(
        DatasetCard(
            "faces with ten captions each, 256×256; give a local path",
            image_size=256,
            has_captions=True,
            citation="Multi-Modal CelebA-HQ (Xia et al., 2021); FA-VAE and CAT",
        ),
        stretch,
    ),
}
