"""What a prior is conditioned on: nothing, the class of each image, or a text for each image.

Classes are int64 tensors of shape (B,); the value ``num_classes`` means "no class". Texts are
:class:`TextFeatures`; a text without tokens means "no text".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spectok.device import send
from spectok.errors import InputError


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Texts as a prior reads them: one vector per token.

    Like a tensor, it is indexed by image and moved with :meth:`to`.

    Args:
        features: Vectors of length D at L places.
        mask: Which places hold a token of the text; the vectors at all others are ignored.
    """

    features: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]

    @classmethod
    def none(cls, count: int, width: int, device: Any = None) -> TextFeatures:
        """Return "no text" for each of several images.

        Args:
            count: Number of images.
            width: Length D of the vectors.
            device: Device of the result.
        """
        features = torch.zeros(count, 1, width, device=device)
        return cls(features, torch.zeros(count, 1, dtype=torch.bool, device=device))

    @property
    def width(self) -> int:
        """Length D of the vectors."""
        return self.features.shape[2]

    def trim(self) -> TextFeatures:
        """Cut off the places at the end that no text uses."""
        length = max(1, int(self.mask.sum(1).max())) if len(self) else 1
        return TextFeatures(self.features[:, :length], self.mask[:, :length])

    def to(self, *args: Any, **kwargs: Any) -> TextFeatures:
        """Move to a device, like :meth:`torch.Tensor.to`; a dtype applies to the vectors only."""
        features = self.features.to(*args, **kwargs)
        return TextFeatures(features, self.mask.to(features.device))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> TextFeatures:
        return TextFeatures(self.features[rows], self.mask[rows])


Condition = Tensor | TextFeatures


def with_null(
    text: TextFeatures, features: Float[Tensor, "b l d"], null: Float[Tensor, "d"]
) -> TextFeatures:
    """Return texts as a prior's own vectors, after one that is all there is of "no text".

    Args:
        text: The texts.
        features: The vector of each of their tokens.
        null: The vector that comes first; it is always in use.
    """
    first = null.expand(len(text), 1, -1)
    return TextFeatures(torch.cat([first, features], dim=1), F.pad(text.mask, (1, 0), value=True))


def join(first: Condition, second: Condition) -> Condition:
    """Concatenate the conditions of two batches; texts may differ in length."""
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
        num_classes: The value that means "no class".
    """
    if isinstance(condition, Tensor):
        return condition.masked_fill(send(hidden, condition.device), num_classes)
    shown = ~send(hidden, condition.mask.device)[:, None]
    return TextFeatures(condition.features, condition.mask & shown)


def check_count(condition: Condition, count: int) -> None:
    """Check that there is one condition for each image.

    Raises:
        InputError: If not; gives both numbers.
    """
    if isinstance(condition, Tensor) and condition.shape != (count,):
        raise InputError(f"labels of shape {tuple(condition.shape)} are not ({count},)")
    if len(condition) != count:
        raise InputError(f"{len(condition)} texts are not {count}; give one for each image")


def check_labels(
    labels: Int[Tensor, "b"], num_classes: int, batch_size: int, *, look: bool = True
) -> Int[Tensor, "b"]:
    """Check classes, and return them as int64.

    Args:
        labels: The class of each image.
        num_classes: Number of classes.
        batch_size: Number of images.
        look: Whether to compare values too, which waits for a GPU that holds them.

    Raises:
        InputError: If there is not one for each image, or one is out of range.
    """
    if num_classes == 0:
        raise InputError("labels were given to a prior without classes; leave them out")
    check_count(labels, batch_size)
    wrong = (labels < 0) | (labels >= num_classes)
    if look and wrong.any():
        raise InputError(f"class {int(labels[wrong][0])} is outside 0..{num_classes - 1}")
    return labels.long()


def check_text(text: TextFeatures, width: int, batch_size: int) -> TextFeatures:
    """Check texts, and return them unchanged.

    Raises:
        InputError: If there is not one for each image, or their vectors have another length.
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
