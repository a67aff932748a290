"""Training an image classifier, with the loop and the kind of recipe that all models share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader

from spectok.data import DataConfig, ImageDataset, build_dataset
from spectok.errors import CheckpointError, DataError
from spectok.evaluation.classifier import BATCH_SIZE, ImageClassifier
from spectok.evaluation.reconstruction import interior_of
from spectok.places import home
from spectok.recipes.recipe import Recipe
from spectok.recipes.schema import Registered, Section
from spectok.training import Callbacks, FitResult, Resume, Run, StepOutput, TrainConfig, fit
from spectok.training.batches import derive_seed
from spectok.training.precision import settled_recipe
from spectok.training.resume import check_resume
from spectok.writing import write_text

TRAIN_DEFAULTS = {
    "steps": 1500,
    "batch_size": 64,
    "learning_rate": 3.0e-3,
    "betas": [0.9, 0.999],
    "weight_decay": 0.01,
    "lr_schedule": "cosine",
    "warmup_steps": 100,
    "log_every": 100,
    "save_every": 500,
    "sample_every": None,
}
"""Defaults of a classifier's ``train:`` section."""


class ClassifierOptions(Section):
    """The network; see :class:`ImageClassifier`.

    Args:
        channels: Channels of the first stage.
        feature_dim: Length of a feature vector.
    """

    channels: int = Field(16, ge=1)
    feature_dim: int = Field(128, ge=1)


class ClassifierRecipe(Recipe):
    """What ``spectok train classifier`` reads.

    Args:
        classifier: The network.
        data: Labelled images to train on.
        train: How to train; see :data:`TRAIN_DEFAULTS`.
    """

    main: ClassVar[str] = "classifier"
    folder: ClassVar[str] = "classifiers"

    classifier: ClassifierOptions = ClassifierOptions.model_validate({})
    data: Annotated[DataConfig, Registered("dataset")] = DataConfig.model_validate({})
    train: TrainConfig = TrainConfig.model_validate(TRAIN_DEFAULTS)

    @classmethod
    def complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Fill in the ``train:`` section with a classifier's defaults."""
        return raw | {"train": TRAIN_DEFAULTS | dict(raw.get("train") or {})}


def train_classifier(
    recipe: ClassifierRecipe, output: Path, *, resume: Resume = False
) -> FitResult:
    """Train a classifier and save it in ``output/model`` with its held-out accuracy.

    If a border was added to the images, the classifier sees only what is inside, as evaluations do.

    Args:
        recipe: What to train on, and how.
        output: Folder of the run.
        resume: True: continue from the newest checkpoint in the folder. ``"auto"``: continue, or
            begin where there is none.

    Raises:
        DataError: If the images have no classes.
    """
    output = Path(home(output))
    check_resume(output, resume)
    dataset = build_dataset(recipe.data, seed=recipe.seed)
    if dataset.num_classes is None or dataset.num_classes < 2:
        raise DataError(
            f"data {recipe.data.name}/{recipe.data.split} has no classes to learn; give labelled "
            f"images, such as one folder per class"
        )
    recipe = settled_recipe(recipe, output, resume)
    model = build(recipe, dataset)

    def compute_losses(module: nn.Module, batch: dict[str, Any]) -> StepOutput:
        logits = module(interior_of(batch["images"], dataset)).float()
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        losses = {"cross_entropy": F.cross_entropy(logits, batch["label"])}
        return StepOutput(losses, {"accuracy": accuracy})

    def save_final(_: nn.Module, folder: Path) -> None:
        record = {
            "held_out_accuracy": held_out_accuracy(model, recipe.data),
            "trained_on": f"{recipe.data.name}/{recipe.data.split} {dataset.fingerprint}",
        }
        model.register_to_config(**{**model.config, **record})
        model.save_pretrained(folder)
        write_text(output / "classifier.json", json.dumps(record, indent=1) + "\n", CheckpointError)

    run = Run(output, recipe.seed, resume, recipe.model_dump(mode="json", exclude={"output"}))
    callbacks = Callbacks(save_final=save_final)
    return fit(model, dataset, compute_losses, recipe.train, run, callbacks=callbacks)


def build(recipe: ClassifierRecipe, dataset: ImageDataset) -> ImageClassifier:
    """Build a classifier with seeded weights, without touching the global random state."""
    channels, height, width = interior_of(dataset[0]["images"], dataset).shape
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, 3))
        return ImageClassifier(
            image_shape=(channels, height, width),
            num_classes=dataset.num_classes or 0,
            class_names=dataset.class_names,
            **recipe.classifier.model_dump(),
        )


def held_out_accuracy(model: ImageClassifier, data: DataConfig) -> float:
    """Return the share of the test split that a classifier gets right."""
    dataset = build_dataset(data.model_copy(update={"split": "test", "limit": None}), train=False)
    right = 0
    for batch in DataLoader(dataset, batch_size=BATCH_SIZE):
        images = interior_of(batch["images"], dataset)
        right += int((model.classify(images) == batch["label"]).sum())
    return right / len(dataset)
