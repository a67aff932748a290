"""What a prior is conditioned on: nothing, a class of each image, or a text of each image.

Classes are int64 tensors of shape (B,), in which the number of classes stands for "no class". Texts
are :class:`TextFeatures`, in which a text without tokens stands for "no text".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.errors import InputError


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Texts as a prior reads them: a vector for each token of each text.

    It is indexed by image, moved and joined as a tensor is.

    Args:
        features: Vectors of length D at L places.
        mask: Which places hold a token of the text; what the others hold is never looked at.
    """

    features: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]

    @classmethod
    def none(cls, count: int, width: int, device: Any = None) -> TextFeatures:
        """Return "no text" for a number of images.

        Args:
            count: Number of images.
            width: Length D of the vectors.
            device: Where to make it.
        """
        features = torch.zeros(count, 1, width, device=device)
        return cls(features, torch.zeros(count, 1, dtype=torch.bool, device=device))

    @property
    def width(self) -> int:
        """Length D of the vectors."""
        return self.features.shape[2]

    def trim(self) -> TextFeatures:
        """Return the same without places at the end that no text uses."""
        length = max(1, int(self.mask.sum(1).max())) if len(self) else 1
        return TextFeatures(self.features[:, :length], self.mask[:, :length])

    def to(self, *args: Any, **kwargs: Any) -> TextFeatures:
        """Move to a device, as :meth:`torch.Tensor.to` does; a dtype is that of the vectors."""
        features = self.features.to(*args, **kwargs)
        return TextFeatures(features, self.mask.to(features.device))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> TextFeatures:
        return TextFeatures(self.features[rows], self.mask[rows])


Condition = Tensor | TextFeatures


def join(first: Condition, second: Condition) -> Condition:
    """Put the conditions of one batch after those of another; texts may differ in length."""
    if isinstance(first, TextFeatures) and isinstance(second, TextFeatures):
        length = max(first.mask.shape[1], second.mask.shape[1])
        parts = [_pad(text, length) for text in (first, second)]
        return TextFeatures(
            torch.cat([part.features for part in parts]), torch.cat([part.mask for part in parts])
        )
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    raise InputError("classes and texts cannot be in one batch; give one or the other")


def hide(condition: Condition, hidden: Bool[Tensor, "b"], num_classes: int) -> Condition:
    """Replace the conditions of some images by "no class" or "no text".

    Args:
        condition: Checked classes or texts.
        hidden: Which images, on any device.
        num_classes: What stands for "no class".
    """
    if isinstance(condition, Tensor):
        return condition.masked_fill(hidden.to(condition.device), num_classes)
    shown = ~hidden.to(condition.mask.device)[:, None]
    return TextFeatures(condition.features, condition.mask & shown)


def check_count(condition: Condition, count: int) -> None:
    """Refuse conditions that are not one for each image.

    Raises:
        InputError: With both numbers.
    """
    if isinstance(condition, Tensor) and condition.shape != (count,):
        raise InputError(f"labels of shape {tuple(condition.shape)} are not ({count},)")
    if len(condition) != count:
        raise InputError(f"{len(condition)} texts are not {count}; give one for each image")


def check_labels(labels: Int[Tensor, "b"], num_classes: int, batch_size: int) -> Int[Tensor, "b"]:
    """Return classes as int64.

    Raises:
        InputError: If there are too few or too many, or one is out of range.
    """
    if num_classes == 0:
        raise InputError("labels were given to a prior without classes; leave them out")
    check_count(labels, batch_size)
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise InputError(f"class {int(labels[wrong][0])} is outside 0..{num_classes - 1}")
    return labels.long()


def check_text(text: TextFeatures, width: int, batch_size: int) -> TextFeatures:
    """Return texts as they are.

    Raises:
        InputError: If there are too few or too many, or they come from another encoder.
    """
    if width == 0:
        raise InputError("texts were given to a prior without text; leave them out")
    check_count(text, batch_size)
    if text.width != width:
        raise InputError(
            f"text features of length {text.width} are not the {width} that this prior reads; "
            f"encode texts with the encoder it was trained with"
        )
    return text


def _pad(text: TextFeatures, length: int) -> TextFeatures:
    missing = length - text.mask.shape[1]
    return TextFeatures(F.pad(text.features, (0, 0, 0, missing)), F.pad(text.mask, (0, missing)))
