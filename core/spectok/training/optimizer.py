"""The optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from spectok.quantizers import Quantizer
from spectok.training.train_config import TrainConfig


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a module's trainable parameters.

    Weight decay spares vectors (biases, gains of norms) and everything inside a quantizer: codes
    are positions, and decay would drag the unused ones to the origin.

    If a module has an attribute ``own_learning_rate`` that is not None, it replaces
    ``config.learning_rate`` for the parameters in that module; warm-up and schedule are the same.
    """
    codes = {
        id(p)
        for child in module.modules()
        if isinstance(child, Quantizer)
        for p in child.parameters()
    }
    own_rates = {
        id(p): rate
        for child in module.modules()
        if (rate := getattr(child, "own_learning_rate", None)) is not None
        for p in child.parameters()
    }
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = []
    for rate in dict.fromkeys([config.learning_rate, *own_rates.values()]):
        members = [p for p in trainable if own_rates.get(id(p), config.learning_rate) == rate]
        decayed = [p for p in members if p.ndim >= 2 and id(p) not in codes]
        spared = [p for p in members if p.ndim < 2 or id(p) in codes]
        for params, decay in [(decayed, config.weight_decay), (spared, 0.0)]:
            groups += [{"params": params, "weight_decay": decay, "peak": rate}] if params else []
    if not groups:  # codes that are averaged in a frozen network: nothing has a gradient
        groups = [{"params": [], "weight_decay": 0.0, "peak": config.learning_rate}]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Set the learning rates of a step, counted from 0, and return that of most parameters.

    A function of the step rather than a scheduler object: it has no state to save, and the number
    of processes cannot change its pace.
    """
    factor = learning_rate_factor(config, step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return config.learning_rate * factor


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
