"""Images as people have them, to batches as tokenizers take them, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spectok.errors import CheckpointError, InputError, shown
from spectok.images import check_values, to_float, to_pil
from spectok.modeling import PROCESSOR_FILE
from spectok.places import home
from spectok.reading import read_json
from spectok.sizes import size_of
from spectok.writing import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's filters, by the numbers that the hub's files have for them."""
SETTINGS: dict[str, Any] = {
    "image_processor_type": "ImageProcessor",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""What every file says, beside the size and the channels."""


class ImageProcessor:
    """Bring images of any kind and size to one batch in [-1, 1], and back to PIL images.

    Images are resized until they cover the size, then cropped to their centre, as by
    :func:`spectok.data.files.load_image`.

    Args:
        image_shape: ``(C, H, W)`` of the batch, such as ``tokenizer.image_shape``.
        filter: Pillow's resampling filter, such as ``tokenizer.resize_filter``.
    """

    def __init__(self, image_shape: tuple[int, int, int], filter: str = "bicubic"):
        channels, height, width = image_shape
        self.image_shape, self.filter = (channels, height, width), filter

    def __call__(self, images: Any) -> Float[Tensor, "b c h w"]:
        """Return a batch in [-1, 1].

        Args:
            images: One image, or a list or batch of images: PIL images; uint8 arrays (H, W) or
                (H, W, C); tensors (C, H, W), uint8 or floats in [-1, 1]; paths; encoded bytes; or
                the ``{"bytes", "path"}`` of the library ``datasets``.

        Raises:
            InputError: If there is none, or one is of another kind; says its number in the list.
            DataError: If one cannot be read.
        """
        items = list(_items(images))
        if not items:
            raise InputError("images are an empty list; give at least one")
        prepared = []
        for number, item in enumerate(items):
            try:
                prepared.append(self._prepare(item))
            except InputError as error:
                raise InputError(f"image {number}: {error}") from error
        return torch.stack(prepared)

    def postprocess(self, images: Float[Tensor, "b c h w"]) -> list[Image]:
        """Return images in [-1, 1] as PIL images; values beyond are clamped.

        Raises:
            InputError: If they are not a batch with 1 or 3 channels.
        """
        if images.ndim != 4:
            raise InputError(f"images of shape {tuple(images.shape)} are not (B, C, H, W)")
        return [to_pil(image) for image in images]

    def _prepare(self, item: Any) -> Float[Tensor, "c h w"]:
        if isinstance(item, Tensor) and item.is_floating_point():
            return self._prepare_floats(item)
        from spectok.data.decode import UnreadableImage, open_image
        from spectok.data.files import fit_image

        reference = _as_reference(item)
        try:
            return to_float(
                torch.from_numpy(fit_image(open_image(reference), self.image_shape, self.filter))
            )
        except UnreadableImage as error:
            raise InputError(f"it cannot be read ({error})") from error

    def _prepare_floats(self, image: Tensor) -> Float[Tensor, "c h w"]:
        channels, height, width = self.image_shape
        if image.ndim != 3 or image.shape[0] != channels or not image.numel():
            raise InputError(
                f"a tensor of shape {tuple(image.shape)} is not ({channels}, H, W) in [-1, 1]"
            )
        image, (tall, wide) = image.float(), size_of(image)
        check_values(image)  # before they are clamped
        if (tall, wide) != (height, width):
            high = height * wide >= width * tall  # the height is what covers the size last
            size = [height, wide * height // tall] if high else [tall * width // wide, width]
            image = _resize(image, size, self.filter)
        top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
        return image[:, top : top + height, left : left + width].clamp(-1, 1)

    # -- files -----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return what the file says, in the manner of the hub."""
        channels, height, width = self.image_shape
        halves = [0.5] * channels
        return SETTINGS | {
            "resample": RESAMPLING[self.filter],
            "size": {"shortest_edge": height} if height == width else self._size,
            "crop_size": self._size,
            "do_convert_rgb": channels == 3,
            "image_mean": halves,
            "image_std": halves,
        }

    @property
    def _size(self) -> dict[str, int]:
        return {"height": self.image_shape[1], "width": self.image_shape[2]}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``preprocessor_config.json`` into a folder.

        Raises:
            CheckpointError: If it cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_text(Path(home(folder), PROCESSOR_FILE), text, CheckpointError)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> ImageProcessor:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: If there is no such file, or it asks for something else than this class
                does.
        """
        path = Path(home(folder), PROCESSOR_FILE)
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {PROCESSOR_FILE}; a tokenizer's own is its .processor"
            )
        content = read_json(path, CheckpointError)
        try:
            height, width = (content["crop_size"][side] for side in ("height", "width"))
            channels = len(content["image_mean"])
            filter = {number: name for name, number in RESAMPLING.items()}[content["resample"]]
            if not all(type(side) is int and side > 0 for side in (height, width)):
                raise TypeError
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} has no crop_size, image_mean or resample; save the model again"
            ) from error
        processor = cls((channels, height, width), filter)
        for key, value in processor.to_dict().items():
            if content.get(key) != value:
                raise CheckpointError(
                    f"{path}: {key} {shown(content.get(key))} is not {value!r}, which is all "
                    "that spectok does; prepare images yourself, or save the model again"
                )
        return processor


def _resize(
    image: Float[Tensor, "c h w"], size: list[int], filter: str
) -> Float[Tensor, "c height width"]:
    """Return an image of another size, by the filters that Pillow has for other images."""
    from PIL import Image

    height, width = size
    chosen = Image.Resampling[filter.upper()]
    planes = (Image.fromarray(plane) for plane in image.cpu().numpy())
    resized = np.stack([np.asarray(plane.resize((width, height), chosen)) for plane in planes])
    return torch.from_numpy(resized).to(image.device)


def is_own(folder: Path) -> bool:
    """Return whether a folder has a file of this class, and not that of another library."""
    path = folder / PROCESSOR_FILE
    if not path.is_file():
        return False
    content = read_json(path, CheckpointError)
    kind = content.get("image_processor_type") if isinstance(content, Mapping) else None
    return kind == SETTINGS["image_processor_type"]


def _items(images: Any) -> Iterable[Any]:
    """Return the single images of whatever was given."""
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim == 4 else [images]
    return images if isinstance(images, list | tuple) else [images]


def _as_reference(item: Any) -> Any:
    """Return what :func:`spectok.data.decode.open_image` opens.

    Raises:
        InputError: If it is no image.
    """
    from PIL.Image import Image

    if isinstance(item, Tensor):
        item = item.movedim(0, -1).cpu().numpy() if item.ndim == 3 else item.cpu().numpy()
    if isinstance(item, np.ndarray):
        item = item[..., 0] if item.ndim == 3 and item.shape[-1] == 1 else item
        fits = item.ndim == 2 or (item.ndim == 3 and item.shape[-1] in (3, 4))
        if item.dtype != np.uint8 or not fits or not item.size:
            raise InputError(
                f"an array of shape {item.shape} and type {item.dtype} is not uint8 (H, W) or "
                "(H, W, C), nor a tensor of uint8 (C, H, W) or floats in [-1, 1]"
            )
        return np.ascontiguousarray(item)
    if isinstance(item, Image) and item.mode == "F":
        raise InputError(
            "floating-point pixels of which nobody said what is white; give a float tensor "
            "(C, H, W) in [-1, 1]"
        )
    if not isinstance(item, Image | str | os.PathLike | bytes | Mapping):
        raise InputError(f"a {type(item).__name__} is no image")
    return item
