"""What the benchmarks of generated images share: a classifier as the judge, and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectok import ImageTokenizer, load_tokenizer
from spectok.data import DataConfig, build_dataset
from spectok.evaluation import (
    ClassifierRecipe,
    ImageClassifier,
    Moments,
    frechet_distance,
    load_classifier,
    train_classifier,
)
from spectok.evaluation.protocol import make_protocol
from spectok.evaluation.reconstruction import evaluate_reconstruction
from spectok.images import to_float, to_uint8
from spectok.training import train_tokenizer
from spectok.training.recipe import load_tokenizer_recipe


class Judge:
    """A classifier and its features of the test images.

    Args:
        classifier: Trained on the training images.
        data: The test images.
    """

    def __init__(self, classifier: ImageClassifier, data: DataConfig):
        self.classifier, self.data = classifier, data
        self.dataset = build_dataset(data, train=False)
        self.images = to_float(torch.tensor(self.dataset.uint8_images()))
        self.real = self.moments(self.images)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Moments:
        """Return the moments of the features of images, rounded to 8 bits."""
        moments = Moments()
        for batch in to_float(to_uint8(images)).split(256):
            moments.add(self.classifier.features(batch))
        return moments

    def distance(self, images: Tensor) -> float:
        """Return the Fréchet distance of images to the test images."""
        return frechet_distance(self.moments(images), self.real)

    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images recognised as the class they were drawn for."""
        return (self.classifier.classify(images) == labels).float().mean().item()

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
    return Judge(load_classifier(folder), recipe.data.model_copy(update={"split": "test"}))


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


def measure_tokenizer(folder: Path, judge: Judge) -> dict[str, Any]:
    """Return the best that can be hoped for: the distance of the test images' reconstructions."""
    tokenizer = load_tokenizer(folder).eval()
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
            {"classifier_frechet": f"classifier {judge.classifier.fingerprint}"},
        ),
    }
