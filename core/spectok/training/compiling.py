"""``train.compile``: a model's forward and backward pass through ``torch.compile``, in place.

Modules keep their classes and their names, so checkpoints and saved models know nothing of it.
Quantizers run as they are: they count codes and keep what they saw for the end of the step, and
cost little. Random numbers are those of an uncompiled run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spectok import distributed
from spectok.errors import ConfigError, TrainingError
from spectok.quantizers import outermost_quantizers
from spectok.training.train_config import TrainConfig

BACKEND = "inductor"
SAME_DRAWS = {"fallback_random": True}
"""Options of the backend: dropout and noise are drawn as without it."""


@contextmanager
def compiled(model: nn.Module, config: TrainConfig, *, alone: bool) -> Iterator[None]:
    """Compile calls of a model inside the context, if its training is to be compiled.

    Args:
        model: The model, not wrapped yet.
        config: How it is trained.
        alone: Whether a step goes backward through it once; another phase, such as a
            discriminator's, asks for gradients of its own.

    Raises:
        TrainingError: If this machine cannot compile it.
    """
    if not config.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._functorch import config as functorch

    quantizers = outermost_quantizers(model)
    for quantizer in quantizers:
        vars(quantizer)["forward"] = torch.compiler.disable(quantizer.forward)
    draw = distributed.draw_uniform  # its generator is another in each step
    distributed.draw_uniform = torch.compiler.disable(draw)
    options: dict[str, Any] = {"options": SAME_DRAWS} if BACKEND == "inductor" else {}
    model.compile(backend=BACKEND, dynamic=False, **options)
    try:
        with (
            functorch.patch(donated_buffer=alone and functorch.donated_buffer),
            warnings.catch_warnings(),
        ):
            # torch looks at the gradients of what enters a graph, and warns of its own look
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            yield
    except TorchDynamoException as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"train.compile: torch.compile does not work on this model or machine "
            f"({reason[:200]}); leave it off"
        ) from error
    finally:
        model._compiled_call_impl = None
        distributed.draw_uniform = draw
        for quantizer in quantizers:
            vars(quantizer).pop("forward", None)


def check_compiler() -> None:
    """Check that there is the C++ compiler that ``torch.compile`` would call.

    Raises:
        ConfigError: Names it, and the remedies.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX") or usual
    if shutil.which(shlex.split(name)[0]) is None:
        raise ConfigError(
            f"train.compile: needs the C++ compiler {name}, which is not there; install one, name "
            f"one with the environment variable CXX, or leave train.compile off"
        )
