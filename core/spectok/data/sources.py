"""Data sets by name: what a plugin registers through ``spectok_datasets``.

A third-party data set is one class::

    class Cats(DatasetSource):
        def describe(self):
            return DatasetCard("cats of the neighbourhood", image_size=64, channels=3)

        def load(self, config):
            return Rows(images=[...], captions=[...])

and one line in a hook: ``return {"cats": Cats()}``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectok.data.data_config import DataConfig
    from spectok.data.preprocessing import Preprocessing
    from spectok.data.rows import Rows


@dataclass(frozen=True)
class DatasetCard:
    """What a data set is, known before it is loaded.

    Args:
        summary: One line.
        image_size: Side of the images as served by default, in pixels.
        channels: 1 or 3.
        num_classes: Number of classes. None: no labels, or known only once it is loaded.
        has_captions: Whether images come with text.
        splits: The splits one can ask for.
        hub_id: Where it is on the Hugging Face Hub. None: give a local ``path``.
        citation: Where it comes from, and whose preprocessing is followed.
    """

    summary: str
    image_size: int = 256
    channels: int = 3
    num_classes: int | None = None
    has_captions: bool = False
    splits: tuple[str, ...] = ("train", "test")
    hub_id: str | None = None
    citation: str = ""


class DatasetSource(ABC):
    """A named data set: where its images are and how they are brought to one shape."""

    @abstractmethod
    def describe(self) -> DatasetCard:
        """Return what is known before loading; imports nothing heavy."""

    @abstractmethod
    def load(self, config: DataConfig) -> Rows:
        """Return the images of one split, not yet decoded, in a fixed order.

        Args:
            config: Above all its ``split`` and ``path``. ``limit``, augmentation and held-out
                images are dealt with by the caller.

        Raises:
            DataError: If there is nothing to load, with the remedy.
        """

    def preprocessing(self, config: DataConfig) -> Preprocessing:
        """Return how images are brought to one shape; by default resize, then crop the centre."""
        from spectok.data.preprocessing import Preprocessing

        card = self.describe()
        size, channels = config.image_size or card.image_size, config.channels or card.channels
        return Preprocessing.resize_and_crop(size, channels)
