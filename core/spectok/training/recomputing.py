"""Gradient checkpointing: blocks that are computed again instead of kept (Chen et al. 2016)."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from spectok.errors import ConfigError


def recompute_blocks(model: nn.Module) -> None:
    """Let each block keep only its inputs, and compute the rest again in the backward pass.

    Random numbers are drawn again as they were, so losses and gradients are the same.

    Args:
        model: Its attribute ``shard_units``, or that of a tokenizer ``recomputed_units``, names the
            classes of its blocks.

    Raises:
        ConfigError: If it has none.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError(
            f"train.gradient_checkpointing: {type(model).__name__} has no blocks to compute again; "
            f"leave it off, or lower train.batch_size and raise train.gradient_accumulation"
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def stop_recomputing(model: nn.Module) -> None:
    """Undo :func:`recompute_blocks`."""
    for block in blocks_of(model):
        vars(block).pop("forward", None)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the classes that a model names, outermost first."""
    names = (*getattr(model, "shard_units", ()), *getattr(model, "recomputed_units", ()))
    return [module for module in model.modules() if type(module).__name__ in names]
