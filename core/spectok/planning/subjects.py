"""What is measured when a tokenizer's training is planned."""

from __future__ import annotations

import torch
from torch import nn

from spectok.errors import CheckpointError
from spectok.losses import LPIPS
from spectok.losses.perceptual import build_distance, check_size
from spectok.planning.measuring import Subject
from spectok.tokenizer import ImageTokenizer
from spectok.training.contracts import Callbacks
from spectok.training.loss_config import LossConfig
from spectok.training.objective import Objective, load_perceptual
from spectok.training.recipe import TokenizerRecipe
from spectok.training.tokenizer import build, make_adversary

BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


def tokenizer_subject(recipe: TokenizerRecipe, device: str = "meta") -> Subject:
    """Return the training of a tokenizer once all its terms are there, without its data.

    Args:
        recipe: A validated recipe.
        device: Where its models are built.

    Raises:
        ConfigError: If options are wrong.
        InputError: If the images do not suit a loss.
    """
    with torch.device(device):
        model = build(recipe.tokenizer, recipe.seed)
        adversary = make_adversary(recipe, model)
    objective = make_objective(model, recipe, adversary)
    phases = [] if adversary is None else [adversary.phase]
    last_start = max(0 if recipe.losses is None else recipe.losses.start_step, 0)
    starts = [last_start, *(phase.first_step for phase in phases)]

    def before_step(_: nn.Module) -> dict[str, torch.Tensor]:
        metrics = objective.before_step()
        model.before_step()
        return metrics

    callbacks = Callbacks(
        begin_step=objective.begin_step,
        before_step=before_step,
        after_step=lambda _, optimizers: model.after_step(optimizers),
    )
    images = torch.zeros(recipe.train.batch_size, *model.image_shape, device="meta")
    frozen = [] if objective.perceptual is None else [objective.perceptual]
    first = 2 * ((max(starts) + 1) // 2)  # even: where phases take turns, the tokenizer's
    return Subject(model, objective, {"images": images}, callbacks, phases, frozen, first)


def make_objective(model: ImageTokenizer, recipe: TokenizerRecipe, adversary: object) -> Objective:
    """Return a tokenizer's objective; LPIPS needs no weights here, only their shapes."""
    losses = recipe.losses or LossConfig.model_validate({})
    section = losses.perceptual
    without = losses.model_copy(update={"perceptual": None})
    objective = Objective(model, without, adversary)  # type: ignore[arg-type]
    if section is not None:
        check_size(section.network, model.image_shape[1:])
        objective.losses = losses
        try:
            objective.perceptual = load_perceptual(section)
        except CheckpointError:
            objective.perceptual = blank_perceptual(section.network)
    return objective


def blank_perceptual(network: str) -> LPIPS:
    """Return LPIPS with the shapes of a backbone, and none of its weights."""
    import torchvision

    with torch.device("meta"):
        features = getattr(torchvision.models, BACKBONES[network])(weights=None).features
    perceptual = LPIPS.__new__(LPIPS)
    nn.Module.__init__(perceptual)
    perceptual.network = network
    perceptual.distance = build_distance(network, features.state_dict())
    return perceptual.eval().requires_grad_(False)
