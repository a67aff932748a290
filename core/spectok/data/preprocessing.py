"""Bring images of any size and mode to one shape, by steps that a protocol can record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spectok.data.data_config import Filter
from spectok.data.decode import UnreadableImage, check_mode, to_channels
from spectok.errors import ConfigError

Op = Literal["resize_shorter", "center_crop", "stretch", "fit", "pad"]
Step = tuple[Op, int]
Box = tuple[int, int, int, int]
_MAX_PIXELS = 1 << 27


@dataclass(frozen=True)
class Preprocessing:
    """A fixed sequence of geometric steps, then 8-bit channels-first pixels.

    Args:
        steps: ``(name, size)`` pairs, applied in order:

            - ``resize_shorter``: the shorter side becomes ``size``, the aspect ratio is kept;
            - ``center_crop``: the central ``size`` × ``size`` pixels;
            - ``stretch``: ``size`` × ``size``, the aspect ratio is not kept;
            - ``fit``: shrunk (never enlarged) into ``size`` × ``size``, centred on black;
            - ``pad``: centred on black, ``size`` × ``size``, not resized.
        channels: 1 (grey) or 3 (RGB).
        filter: Pillow's resampling filter; all but ``nearest`` are antialiased when shrinking.
        interior: (top, left, height, width) of the image inside an added border; losses and metrics
            are computed inside it. None: no border.
        expected_size: (width, height) of all source images, which ``interior`` assumes. None: any.
        max_value: What is white in grey images of more than 8 bits or of floating-point numbers,
            and, if it is below 255, in images of 8 bits. None: 65,535 and 255, and images of
            floating-point numbers are refused.
    """

    steps: tuple[Step, ...]
    channels: int = 3
    filter: Filter = "bicubic"
    interior: Box | None = None
    expected_size: tuple[int, int] | None = None
    max_value: float | None = None

    def __post_init__(self):
        if not self.steps or self.steps[-1][0] == "resize_shorter":
            raise ConfigError(
                f"preprocessing steps {self.steps} do not end in a square; add a center_crop"
            )

    @classmethod
    def resize_and_crop(
        cls, image_size: int, channels: int = 3, filter: Filter = "bicubic"
    ) -> Preprocessing:
        """Return the default: resize the shorter side, then crop the centre."""
        steps: tuple[Step, ...] = (("resize_shorter", image_size), ("center_crop", image_size))
        return cls(steps, channels, filter)

    @property
    def image_size(self) -> int:
        """Side of the square result, in pixels."""
        return self.steps[-1][1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the result."""
        return self.channels, self.image_size, self.image_size

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
        """Return the image as (C, H, W) uint8.

        Raises:
            UnreadableImage: If a step does not apply to an image of this size.
        """
        self.check_header(image.size, image.mode)
        image = to_channels(image, self.channels, self.max_value)
        for name, size in self.steps:
            image = _STEPS[name](image, size, Image.Resampling[self.filter.upper()])
        pixels = np.array(image)  # a copy: Pillow's own memory is read-only
        if self.channels == 1:
            return pixels[None]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def check_header(self, size: tuple[int, int], mode: str) -> None:
        """Refuse an image that a look at its header shows to be of the wrong kind.

        Raises:
            UnreadableImage: If it has another size than expected, or floating-point pixels without
                ``max_value``.
        """
        if self.expected_size and size != self.expected_size:
            raise UnreadableImage(
                f"{_times(*size)}, where {_times(*self.expected_size)} is expected"
            )
        check_mode(mode, self.max_value)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the pixels, ready for JSON."""
        scale = {} if self.max_value is None else {"max_value": self.max_value}
        return scale | {
            "steps": [list(step) for step in self.steps],
            "channels": self.channels,
            "filter": self.filter,
            "antialias": self.filter != "nearest",
            "transparency": "composited on white",
            "orientation": "applied",
            "range": [-1, 1],
            "interior": list(self.interior) if self.interior else None,
        }


def fit_box(width: int, height: int, size: int) -> Box:
    """Return (top, left, height, width) of an image of that size after the step ``fit``."""
    scale = min(1.0, size / max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    return (size - height) // 2, (size - width) // 2, height, width


def _resize_shorter(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    width, height = image.size
    if min(width, height) == size:
        return image
    scaled = (size, size * height // width) if width <= height else (size * width // height, size)
    if math.prod(scaled) > _MAX_PIXELS:
        raise UnreadableImage(f"{_size(image)}, too narrow: its shorter side would become {size}")
    return image.resize(scaled, filter)


def _center_crop(image: Image.Image, size: int, _: Image.Resampling) -> Image.Image:
    if min(image.size) < size:
        raise UnreadableImage(f"{_size(image)}, smaller than the crop of {_times(size, size)}")
    # Half a pixel is rounded to even, as torchvision's CenterCrop does.
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _stretch(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), filter)


def _fit(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    top, left, height, width = fit_box(*image.size, size)
    if image.size != (width, height):
        image = image.resize((width, height), filter)
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, (left, top))
    return canvas


def _pad(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    if max(image.size) > size:
        raise UnreadableImage(f"{_size(image)}, larger than the canvas of {_times(size, size)}")
    return _fit(image, size, filter)


def _size(image: Image.Image) -> str:
    return _times(*image.size)


def _times(width: int, height: int) -> str:
    return f"{width}×{height}"


_STEPS: dict[str, Callable[[Image.Image, int, Image.Resampling], Image.Image]] = {
    "resize_shorter": _resize_shorter,
    "center_crop": _center_crop,
    "stretch": _stretch,
    "fit": _fit,
    "pad": _pad,
}
