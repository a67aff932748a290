"""A small convolutional network that recognises the classes of small images.

It only ever learns from real images, and judges how many samples look like what they should be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spectok.data import ImageDataset

BATCH_SIZE = 64
LEARNING_RATE = 3e-3


class Classifier(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        image_shape: (C, H, W) of the images, H and W at least 4.
        num_classes: Number of classes.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        channels, height, width = image_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64 * (height // 4) * (width // 4), num_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits."""
        return self.head(self.dropout(self.features(images).flatten(1)))

    @torch.no_grad()
    def classify(self, images: Float[Tensor, "n c h w"]) -> Int[Tensor, "n"]:
        """Return the likeliest class of each image."""
        self.eval()
        return torch.cat([self(part).argmax(1) for part in images.split(256)])


def train_classifier(
    dataset: ImageDataset, epochs: int, seed: int, on_epoch: Callable[[int], None]
) -> Classifier:
    """Train a classifier from a fixed seed, leaving the global random state alone.

    Args:
        dataset: Labelled images; its augmentation is drawn anew each epoch.
        epochs: Passes over the images.
        seed: Decides weights, order and dropout.
        on_epoch: Called with 1 after each pass.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(dataset.image_shape, dataset.num_classes or 1)
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=epochs * len(loader)
        )
        for epoch in range(epochs):
            dataset.set_epoch(epoch)
            for batch in loader:
                loss = F.cross_entropy(model(batch["images"]), batch["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            on_epoch(1)
    return model.eval()
