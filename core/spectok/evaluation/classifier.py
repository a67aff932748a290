"""A small convolutional classifier: it recognises images, and its features compare sets of images.

Trained on small grey digits, it judges them better than Inception, which never saw any. Distances
in its features carry its name, never FID's.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from spectok.errors import CheckpointError, InputError
from spectok.images import to_float, to_uint8
from spectok.modeling import SpectokModel
from spectok.places import home, missing

SMALLEST_MAP = 4  # pixels; feature maps are halved down to this
BATCH_SIZE = 256


class ImageClassifier(SpectokModel):
    """Convolutions that halve the image down to about 4 pixels, then a mean and a linear layer.

        images (B, C, H, W)
          | stages        3x3 convolutions with batch norm; each stage halves, doubles the channels
        maps (B, D, h, w)
          | mean
        features (B, D)
          | head          linear
        logits (B, K)

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Number K of classes.
        channels: Channels of the first stage.
        feature_dim: Largest number of channels of a stage, and the length D of a feature vector.
        class_names: Name of each class, if classes have names.
        trained_on: Data set and its fingerprint. None: not trained.
        held_out_accuracy: Share of held-out images classified correctly after training.
    """

    @register_to_config
    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: Annotated[int, Field(ge=2)],
        channels: Annotated[int, Field(ge=1)] = 16,
        feature_dim: Annotated[int, Field(ge=1)] = 128,
        class_names: list[str] | None = None,
        trained_on: str | None = None,
        held_out_accuracy: float | None = None,
    ):
        super().__init__()
        self.image_shape = tuple(image_shape)
        size, width = min(self.image_shape[1:]), channels
        blocks = [_convolution(self.image_shape[0], width, 1)]
        while size > SMALLEST_MAP:
            size, wider = -(-size // 2), min(2 * width, feature_dim)
            blocks += [_convolution(width, wider, 2), _convolution(wider, wider, 1)]
            width = wider
        if width != feature_dim:
            blocks.append(_convolution(width, feature_dim, 1))
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return one vector per image.

        Args:
            images: In [-1, 1], of ``image_shape``.

        Raises:
            InputError: If they have another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"images of shape {tuple(images.shape)} do not fit this classifier, which takes "
                f"(B, {', '.join(map(str, self.image_shape))}); train one for these images"
            )
        return self.stages(images.to(self.dtype)).mean((2, 3))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits."""
        return self.head(self.features(images))

    @torch.no_grad()
    def classify(self, images: Float[Tensor, "n c h w"]) -> Int[Tensor, "n"]:
        """Return the likeliest class of each image; images are rounded to 8 bits, as when saved."""
        was_training = self.training
        self.eval()
        parts = [to_float(to_uint8(part)).to(self.device) for part in images.split(BATCH_SIZE)]
        found = torch.cat([self(part).argmax(1).cpu() for part in parts])
        self.train(was_training)
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_classifier(path: str | os.PathLike[str]) -> ImageClassifier:
    """Load a trained classifier, in eval mode.

    Args:
        path: The classifier's folder, or that of its ``spectok train classifier`` run.

    Raises:
        CheckpointError: If the folder does not exist or does not hold a trained classifier.
    """
    folder = Path(home(path))
    folder = folder / "model" if os.path.isdir(folder / "model") else folder
    if not os.path.isdir(folder):
        what = f"{path} is not a directory" if os.path.exists(folder) else missing(path)
        raise CheckpointError(f"{what}; give a classifier that 'spectok train classifier' saved")
    model: Any = ImageClassifier.from_pretrained(folder)
    if model.config["trained_on"] is None:
        raise CheckpointError(f"{path} holds a classifier that was never trained; train it first")
    return model


def _convolution(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
