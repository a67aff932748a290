"""The contract of named data sets, which a plugin registers through ``spectok_datasets``.

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
        num_classes: Number of classes. None: no labels, or unknown before loading.
        has_captions: Whether images come with text.
        splits: The available splits.
        hub_id: Its id on the Hugging Face Hub. None: it needs a local ``path``.
        citation: Its origin, and whose preprocessing is followed.
        license: Its licence as its publisher states it; empty if not known.
    """

    summary: str
    image_size: int = 256
    channels: int = 3
    num_classes: int | None = None
    has_captions: bool = False
    splits: tuple[str, ...] = ("train", "test")
    hub_id: str | None = None
    citation: str = ""
    license: str = ""


class DatasetSource(ABC):
    """A named data set: where its images come from, and how they are brought to one shape."""

    @abstractmethod
    def describe(self) -> DatasetCard:
        """Return what is known before loading; imports nothing heavy."""

    @abstractmethod
    def load(self, config: DataConfig) -> Rows:
        """Return the images of one split, not yet decoded, in a fixed order.

        Args:
            config: The ``data:`` section, above all ``split`` and ``path``. The caller applies
                ``limit`` and augmentation and holds images out.

        Raises:
            DataError: If nothing can be loaded; the message says what to do.
        """

    def originals(self, config: DataConfig) -> Rows:
        """Return the images of one split at their own sizes: by default, those of :meth:`load`.

        A source whose :meth:`load` cuts images itself returns here what it cuts them from.
        """
        return self.load(config)

    def preprocessing(self, config: DataConfig) -> Preprocessing:
        """Return how images are brought to one shape: by default, resized, then centre-cropped."""
        from spectok.data.preprocessing import Preprocessing

        card = self.describe()
        size, channels = config.image_size or card.image_size, config.channels or card.channels
        return Preprocessing.resize_and_crop(size, channels)
