"""A quantizer or tokenizer with what it needs to take training steps as the trainer does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from spectok.distributed import world
from spectok.outputs import QuantizerOutput, TokenizerOutput
from spectok.quantizers import Quantizer
from spectok.testing.expect import expect
from spectok.tokenizer import ImageTokenizer

ModelT = TypeVar("ModelT", Quantizer, ImageTokenizer)


class Learner(nn.Module, ABC, Generic[ModelT]):
    """Gives quantizers and tokenizers one interface, so that one check serves both.

    Args:
        model: The quantizer or tokenizer under test.
    """

    def __init__(self, model: ModelT):
        super().__init__()
        self.model: ModelT = model

    @abstractmethod
    def objective(self, batch: Tensor) -> Tensor:
        """Return the scalar that training minimises."""

    @abstractmethod
    def batch(self, size: int) -> Tensor:
        """Draw a batch from torch's global random state."""

    def backward(self, objective: Tensor) -> None:
        """Compute gradients; a frozen model, none of whose parameters is trained, has none."""
        if any(parameter.requires_grad for parameter in self.parameters()):
            objective.backward()

    def moving_batches(self, size: int, steps: int) -> list[Tensor]:
        """Draw batches centred off zero that change sides every other step, so that codes die.

        The second half of each batch is spread less, so that two ranks see different data.
        """
        spread = torch.linspace(0.5, 0.1, size).view(-1, *[1] * (self.batch(1).ndim - 1))
        return [spread * self.batch(size) + 0.5 * (-1) ** (i // 2) for i in range(steps)]


class VectorLearner(Learner[Quantizer]):
    """A quantizer behind one linear layer, trained to reproduce the layer's input.

    Args:
        quantizer: The quantizer under test.
    """

    def __init__(self, quantizer: Quantizer):
        super().__init__(quantizer)
        self.encoder = nn.Linear(quantizer.dim, quantizer.dim)
        nn.init.eye_(self.encoder.weight)

    def forward(self, vectors: Float[Tensor, "b n d"]) -> QuantizerOutput:
        """Quantise a batch after the linear layer, which stands in for an encoder."""
        return self.model(self.encoder(vectors))

    def objective(self, batch: Float[Tensor, "b n d"]) -> Tensor:
        """Return the quantizer's losses plus the error of ``z_q``."""
        output = self(batch)
        return total(output.losses) + (output.z_q - batch).square().mean()

    def batch(self, size: int) -> Float[Tensor, "b n d"]:
        """Draw standard normal vectors."""
        return torch.randn(size, self.model.num_tokens, self.model.dim)


class ImageLearner(Learner[ImageTokenizer]):
    """A tokenizer with its own losses.

    Args:
        tokenizer: The tokenizer under test.
    """

    def forward(self, images: Float[Tensor, "b c h w"]) -> TokenizerOutput:
        """Encode, quantise and decode."""
        return self.model(images)

    def objective(self, batch: Float[Tensor, "b c h w"]) -> Tensor:
        """Return the sum of the tokenizer's losses."""
        return total(self(batch).losses)

    def batch(self, size: int) -> Float[Tensor, "b c h w"]:
        """Draw smooth images in [-1, 1]: products of two waves of random length and phase."""
        channels, height, width = self.model.image_shape
        rows = torch.linspace(0, 2 * math.pi, height).view(1, 1, -1, 1)
        columns = torch.linspace(0, 2 * math.pi, width).view(1, 1, 1, -1)
        down, up, across, along = 3 * torch.rand(4, size, channels, 1, 1)
        return torch.sin(down * rows + 2 * up) * torch.cos(across * columns + along)


def total(losses: dict[str, Tensor]) -> Tensor:
    """Return the training objective: the sum of the losses, which are already weighted."""
    return sum((value.float() for value in losses.values()), torch.zeros(()))


def take_step(
    learner: Learner, micro_batches: Sequence[Tensor], optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Take one optimiser step as the trainer does, over one or more micro-batches.

    Args:
        learner: In training mode.
        micro_batches: Batches of equal size whose gradients are averaged.
        optimizer: Optimiser of the learner's parameters.
        seed: Seed of the step, the same on every rank.

    Raises:
        AssertionError: If the objective is not finite.
    """
    torch.manual_seed(seed)
    optimizer.zero_grad()
    for batch in micro_batches:
        objective = learner.objective(batch)
        expect(objective.isfinite(), f"the training objective is {objective.item()}")
        learner.backward(objective / len(micro_batches))
    _average_gradients(learner)
    learner.model.before_step()
    optimizer.step()
    learner.model.after_step([optimizer])


def train(learner: Learner, steps: Sequence[Sequence[Tensor]], seed: int = 0) -> None:
    """Train with plain gradient descent, which unlike Adam does not amplify rounding.

    Args:
        learner: Is put into training mode.
        steps: The micro-batches of each optimiser step.
        seed: Seed of the first step.
    """
    learner.train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    for i, micro_batches in enumerate(steps):
        take_step(learner, micro_batches, optimizer, seed + i)


def fit(
    learner: ImageLearner, images: Tensor, steps: int, learning_rate: float
) -> tuple[float, float]:
    """Train on a few images with Adam; return the squared error before and after."""
    before = _error(learner, images)
    optimizer = torch.optim.Adam(learner.train().parameters(), lr=learning_rate)
    for step in range(steps):
        take_step(learner, [images], optimizer, step)
    return before, _error(learner, images)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter and persistent buffer."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _average_gradients(learner: Learner) -> None:
    size = world()[1]
    if size == 1:
        return
    for parameter in learner.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= size


@torch.no_grad()
def _error(learner: ImageLearner, images: Tensor) -> float:
    return (learner.eval()(images).reconstruction - images).square().mean().item()
