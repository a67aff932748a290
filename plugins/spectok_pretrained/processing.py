"""What a checkpoint's own image processor does: the size, the filter and the scale of pixels."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spectok import CheckpointError, ConfigError, ForeignFolder

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
FILTERS: dict[int, Filter] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Pillow's numbers of its filters, which transformers saves."""
FILES = ("preprocessor_config.json", "processor_config.json")
"""Where transformers saves it: alone, or, in version 5, with that of the text."""
LARGEST_SIDE = 1 << 13


class ImageProcessor(BaseModel):
    """The fields of a saved image processor that matter to a tokenizer."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    size: int | dict[str, int | None] | None = None
    crop_size: int | dict[str, int | None] | None = None
    min_pixels: Annotated[int, Field(ge=1)] | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = True
    rescale_factor: Annotated[float, Field(gt=0)] | None = 1 / 255
    do_normalize: bool | None = True
    image_mean: float | list[float] | None = 0.5
    image_std: float | list[float] | None = 0.5
    resample: int | None = 3

    @property
    def side(self) -> int | None:
        """Side of the square image that leaves it, in pixels; None if it does not say."""
        cropped = self.crop_size if self.do_center_crop is not False else None
        for size in (cropped, self.size):
            if isinstance(size, int):
                return size
            for key in ("height", "shortest_edge"):
                if size and size.get(key):
                    return size[key]
        pixels = self.size.get("min_pixels") if isinstance(self.size, dict) else self.min_pixels
        return math.isqrt(pixels) if pixels else None

    def affine(self) -> tuple[list[float], list[float]]:
        """Return ``mean`` and ``std`` for pixels in [0, 1], one number or one per channel.

        The processor computes ``(p rescale_factor - image_mean) / image_std`` of pixels p in
        [0, 255]: ``(p/255 - image_mean/f) / (image_std/f)`` with f = 255 ``rescale_factor``.
        """
        factor = 255 * ((self.rescale_factor or 1 / 255) if self.do_rescale else 1.0)
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else (0.0, 1.0)
        means = mean if isinstance(mean, list) else [0.0 if mean is None else mean]
        stds = std if isinstance(std, list) else [1.0 if std is None else std]
        return [value / factor for value in means], [value / factor for value in stds]


def read_processor(saved: ForeignFolder) -> ImageProcessor | None:
    """Return the image processor that is saved with a model; None if there is none.

    Raises:
        CheckpointError: If a field has a value that no processor has.
    """
    for name in FILES:
        content: Any = saved.read(name)
        content = content if name == FILES[0] else (content or {}).get("image_processor")
        if content is None:
            continue
        try:
            return ImageProcessor.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "image_processor"
            raise CheckpointError(
                f"{saved.place}/{name}: {where}: {first['msg']}; copy it again"
            ) from error
    return None


def processing_options(
    processor: ImageProcessor, channels: int, size: int, factor: int, place: str
) -> dict[str, Any]:
    """Return the constructor options that a processor and an image size decide.

    Args:
        processor: What the checkpoint's images go through.
        channels: Channels of the images.
        size: Height and width of the images.
        factor: Pixels per latent pixel, of which the size is a multiple.
        place: Where the model is, for messages.

    Raises:
        CheckpointError: If the processor has another number of channels.
        ConfigError: If the size does not fit.
    """
    if not factor <= size <= LARGEST_SIDE or size % factor:
        fit = min(max(round(size / factor), 1) * factor, LARGEST_SIDE)
        raise ConfigError(
            f"image_size {size} is no multiple of {factor} up to {LARGEST_SIDE} for {place}; load "
            f"it with one, e.g. image_size={fit}"
        )
    mean, std = processor.affine()
    if {len(mean), len(std)} - {1, channels} or min(std) <= 0:
        raise CheckpointError(
            f"{place}: its image processor has {len(mean)} means and {len(std)} deviations above 0 "
            f"for images of {channels} channels; copy it again"
        )
    return {
        "image_size": size,
        "image_mean": tuple(mean),
        "image_std": tuple(std),
        "resample": FILTERS.get(3 if processor.resample is None else processor.resample, "bicubic"),
    }
