"""What the benchmarks of generated images share: a classifier as the judge, and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectok import ImageTokenizer, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.evaluation import ClassifierRecipe, Networks, frechet_distance, train_classifier
from spectok.evaluation.features import find_extractors
from spectok.evaluation.generated import ImageSet
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import evaluate_reconstruction
from spectok.images import to_float
from spectok.training import train_tokenizer
from spectok.training.recipe import load_tokenizer_recipe

KIND = "classifier"


class Judge:
    """A classifier and its features of the test images.

    Args:
        classifier: Folder of one that was trained on the training images.
        data: The test images.
    """

    def __init__(self, classifier: Path, data: DataConfig):
        self.data, self.dataset = data, build_dataset(data, train=False)
        networks, shape = Networks(classifier=classifier), self.dataset.image_shape
        self.extractor = find_extractors(networks, shape, "cpu").found[KIND]
        self.classifier: Any = self.extractor.classifier
        self.images = to_float(torch.tensor(self.dataset.uint8_images()))
        self.real = self.look_at(self.images)

    def look_at(self, images: Tensor) -> ImageSet:
        """Return the features of images, rounded to 8 bits, and their classes."""
        found = ImageSet({KIND: self.extractor}, "cpu")
        for batch in images.split(256):
            found.add(batch)
        return found

    def distance(self, images: Tensor) -> float:
        """Return the Fréchet distance of images to the test images."""
        sets = (found.features[KIND].moments for found in (self.look_at(images), self.real))
        return frechet_distance(*sets)

    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images recognised as the class they were drawn for."""
        return self.look_at(images).accuracy(labels.tolist())

    def describe(self) -> dict[str, Any]:
        """Return how reliable the judge is."""
        config = self.classifier.config
        return {
            "test_accuracy": config["held_out_accuracy"],
            "trained_on": config["trained_on"],
        }


def make_judge(data: str, folder: Path) -> Judge:
    """Train the classifier on MNIST, unless it exists already."""
    recipe = ClassifierRecipe.model_validate({"data": {"name": "mnist", "path": data}})
    if not (folder / "model").is_dir():
        train_classifier(recipe, folder, resume="auto")
    return Judge(folder, recipe.data.model_copy(update={"split": "test"}))


def make_tokenizer(recipe_name: str, data: str, folder: Path) -> Path:
    """Train a tokenizer, unless it exists already, and return its folder."""
    recipe = load_tokenizer_recipe(recipe_name, [("data.path", data)])
    if not (folder / "model").is_dir():
        train_tokenizer(recipe, folder, resume="auto")
    return folder / "model"


@torch.no_grad()
def reconstruct(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Return images encoded to tokens and decoded again."""
    return torch.cat([tokenizer.decode(tokenizer.encode(batch)) for batch in images.split(256)])


def measure_tokenizer(model: str | Path, judge: Judge) -> dict[str, Any]:
    """Return the best that can be hoped for: the distance of the test images' reconstructions."""
    tokenizer = load_tokenizer(model)
    measured = evaluate_reconstruction(tokenizer, judge.dataset)
    return {
        "latent_shape": list(tokenizer.latent_shape),
        "bits_per_image": tokenizer.token_spec.bits_per_image,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "psnr": measured["psnr"],
        "classifier_frechet": judge.distance(reconstruct(tokenizer, judge.images)),
        "protocol": make_protocol(
            judge.dataset,
            "float32",
            0,
            {"classifier_frechet": judge.extractor.identity},
        ),
    }
