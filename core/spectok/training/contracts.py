"""What goes into the training loop and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Record = dict[str, Any]
Resume = bool | Literal["auto"]


@dataclass
class StepOutput:
    """The losses and metrics of one micro-batch.

    Args:
        losses: Weighted scalar terms; the objective is their sum. The same terms on every rank.
        metrics: Scalar tensors worth logging.
        shared: What later phases of the same micro-batch reuse, such as the reconstruction.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    shared: Any = None


@dataclass
class Phase:
    """A second objective with a module and an optimiser of its own, such as a discriminator's.

    In each micro-batch the model's own objective comes first, then the phases in order; each has
    its backward pass and optimiser step before the next begins. While one is trained, the
    parameters of the others take no gradient.

    Args:
        name: Names its terms in the log and its file in a checkpoint.
        module: What it trains.
        compute_losses: ``(module, batch, shared) -> StepOutput``; ``shared`` is the model's, or
            None in a step that does not train the model.
        first_step: Optimiser steps to wait before it begins.
        alternate: From then on, train this on odd steps and all else on even ones.
        learning_rate: Its peak learning rate. None: the model's.
    """

    name: str
    module: nn.Module
    compute_losses: Callable[[nn.Module, Any, Any], StepOutput]
    first_step: int = 0
    alternate: bool = False
    learning_rate: float | None = None


@dataclass
class Callbacks:
    """What a kind of model adds to the loop. All but the first get the model itself, unwrapped.

    Args:
        begin_step: Called first in each optimiser step, with its number, counted from 0.
        before_step: Called when gradients are synchronised and unscaled but not yet clipped; what
            it returns is logged.
        after_step: Called after the optimiser step, with the optimisers.
        skip_step: Called instead of both when no optimiser step is taken because gradients
            overflowed in fp16, to forget what the micro-batches left behind.
        sample: Called on the main process, in eval mode and with averaged weights, to write
            samples of a step into a directory.
        save_final: Called on the main process with the final weights, to write them to a directory.
    """

    begin_step: Callable[[int], None] | None = None
    before_step: Callable[[nn.Module], Mapping[str, Tensor] | None] | None = None
    after_step: Callable[[nn.Module, list[torch.optim.Optimizer]], None] | None = None
    skip_step: Callable[[nn.Module], None] | None = None
    sample: Callable[[nn.Module, int, Path], None] | None = None
    save_final: Callable[[nn.Module, Path], None] | None = None


@dataclass
class Run:
    """Where a run is kept, and what defines it.

    Args:
        output: Folder of the run.
        seed: Decides everything random.
        resume: True: continue from the newest checkpoint in the folder, which must have one.
            ``"auto"``: continue if it has one, begin otherwise. False: begin.
        recipe: The resolved recipe, in plain JSON types, without ``output``. Saved with the run
            and compared on resume.
        sources: Fingerprints of the trained models that the run builds on, compared on resume in
            the place of where they lie.
    """

    output: Path
    seed: int = 0
    resume: Resume = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass
class FitResult:
    """The outcome of training.

    Args:
        step: Optimiser steps taken.
        seconds: Time they took, over all resumptions.
        history: The lines of the log.
        checkpoint: The last checkpoint.
        model: The trained model, unwrapped, with the weights that were saved as final.
    """

    step: int
    seconds: float
    history: list[Record]
    checkpoint: Path
    model: nn.Module
