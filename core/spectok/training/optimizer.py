"""The optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from spectok.quantizer import Quantizer
from spectok.training.config import TrainConfig


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a module's trainable parameters.

    Weight decay spares vectors (biases, gains of norms) and everything inside a quantizer: codes
    are places, and decay would drag the unused ones to the origin.
    """
    codes = {
        id(p)
        for child in module.modules()
        if isinstance(child, Quantizer)
        for p in child.parameters()
    }
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in codes]
    spared = [p for p in trainable if p.ndim < 2 or id(p) in codes]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Set the learning rate of a step, counted from 0, and return it.

    A function of the step rather than a scheduler object: there is no state to save, and the number
    of processes cannot change its pace.
    """
    rate = config.learning_rate * learning_rate_factor(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Return the fraction of the peak learning rate that a step takes, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return 1.0
    passed = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.lr_schedule == "linear":
        return max(0.0, 1.0 - passed)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
