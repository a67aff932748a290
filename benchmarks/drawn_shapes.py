"""Images drawn from captions of the built-in shapes, and the checker that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectok.data import DataConfig, build_dataset
from spectok.data.shapes import COMBINATIONS, caption
from spectok.evaluation.protocol import VERSION, protocol_id
from spectok.evaluation.shapes import ShapeReading, read_shapes
from spectok.images import to_uint8
from spectok_generation.drawing import draw_images
from spectok_generation.pairs import load_encoder, load_pair
from spectok_generation.sampling import SamplingOptions

ATTRIBUTES = ("size", "colour", "shape")


def read(images: Tensor) -> list[ShapeReading]:
    """Read images in [-1, 1], rounded to 8 bits."""
    return read_shapes(to_uint8(images).permute(0, 2, 3, 1).numpy())


def score(images: Tensor, wanted: list[int]) -> dict[str, float]:
    """Return how many images show their combination, and each attribute of it.

    Args:
        images: In [-1, 1].
        wanted: Places in ``COMBINATIONS``.
    """
    readings = read(images)
    right = [reading.caption == caption(label) for reading, label in zip(readings, wanted)]
    found: dict[str, float] = {"all": float(np.mean(right))}
    for place, attribute in enumerate(ATTRIBUTES):
        shown = [getattr(reading, attribute) for reading in readings]
        words = [COMBINATIONS[label][place] for label in wanted]
        found[attribute] = float(np.mean([s == w for s, w in zip(shown, words)]))
    clear = [reading.caption is not None for reading in readings]
    return found | {"clear": float(np.mean(clear))}


def judge_checker(tokenizer: Any) -> dict[str, Any]:
    """Return how well the checker reads real images and their reconstructions."""
    found: dict[str, Any] = {}
    for split in ("test", "unseen"):
        config = DataConfig.model_validate({"name": "shapes", "split": split})
        dataset = build_dataset(config, train=False)
        images = torch.stack([dataset[i]["images"] for i in range(len(dataset))])
        labels = [int(dataset[i]["label"]) for i in range(len(dataset))]
        with torch.no_grad():
            decoded = [tokenizer.decode(tokenizer.encode(batch)) for batch in images.split(64)]
        found[split] = {
            "images": len(images),
            "real": score(images, labels),
            "reconstructed": score(torch.cat(decoded), labels),
        }
    return found


def drawing_protocol(num_images: int) -> dict[str, Any]:
    """Return how images are drawn and judged, with its id."""
    protocol = {
        "version": VERSION,
        "captions": [caption(label) for label in range(len(COMBINATIONS))],
        "num_images": num_images,
        "judged_by": "spectok.evaluation.shapes.read_shapes",
        "temperature": 1.0,
        "seed": 0,
        "precision": "float32",
        "rounding": "uint8",
    }
    return {"id": protocol_id(protocol), **protocol}


class Painter:
    """Draws images of combinations of words.

    Args:
        folder: A trained run, or the name of a trained model that is installed.
    """

    def __init__(self, folder: Path | str):
        self.prior, self.tokenizer = load_pair(folder)
        self.encoder = load_encoder(self.prior, folder)

    def draw(self, labels: list[int], guidance: float, seed: int = 0) -> Tensor:
        """Draw one image for each combination."""
        texts = self.encoder([caption(label) for label in labels])
        options = SamplingOptions(guidance=guidance)
        return draw_images(
            self.prior, self.tokenizer, len(labels), texts, seed=seed, options=options
        )
